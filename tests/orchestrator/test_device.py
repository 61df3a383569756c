"""`potluck generate --device`: what cannot be used is said in one line before anything is read."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.device import devices_for
from orchestrator.cli.even_plan import even_plan
from placement.errors import InputError
from placement.plan import Plan
from placement.plan_file import write_plan
from tests.cuda_on_cpu.build import build
from tests.cuda_on_cpu.card import Card
from tests.orchestrator.command_line import Potluck, says
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.open_model import open_model

IDS = ("--token-ids", "5,6,7", "--max-tokens", "2")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("device") / "model", seed=2)


def on_card(model_dir: Path, device: str, *, budget_bytes: int | None = None) -> Plan:
    """Head and all experts on a card."""
    plan = even_plan(open_model(model_dir).shape, 0, "float32")
    (tier,) = plan.tiers
    return replace(
        plan,
        tiers=(replace(tier, device=device, kind="vram", budget_bytes=budget_bytes or tier.budget_bytes),),
    )


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        ({}, "cuda:3", "error: cuda:3: this box has one card, cuda:0"),
        ({"count": 0}, "cuda", "error: the NVIDIA driver shows no card here: use --device cpu"),
        ({"version": 11080}, "cuda", "error: the NVIDIA driver is for CUDA 11.8 … update it"),
        (
            {"capability": 61},
            "cuda:0",
            "error: cuda:0: … compute capability 6.1; expected 7.5 … --device cpu",
        ),
        ({"init": 999}, "cuda", "error: the NVIDIA driver does not start (CUDA_ERROR_UNKNOWN)"),
        ({}, "gpu", "error: --device 'gpu': expected auto, cpu, cuda or cuda:N"),
        ({}, "cuda:x", "error: device 'cuda:x': expected"),
        # Else a run would take it for another card than cuda:1.
        ({}, "cuda:01", "error: device 'cuda:01': expected … such as cuda:1"),
    ],
)
def test_a_card_that_cannot_be_used_is_one_line(
    card: Card, potluck: Potluck, model_dir: Path, settings: dict[str, int], device: str, expected: str
) -> None:
    for name, value in settings.items():
        card.set(name, value)
    code, out, err = potluck("generate", "--model", model_dir, *IDS, "--device", device)
    assert (code, out) == (2, "")
    assert says(err, expected), err


def test_missing_bindings_are_one_line(
    potluck: Potluck, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    code, out, err = potluck("generate", "--model", model_dir, *IDS, "--device", "cuda")
    assert (code, out) == (2, "")
    assert says(err, "error: a GPU needs cuda-bindings, which is not installed here: pip install"), err


def in_a_process_of_its_own(environment: dict[str, str], *arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "orchestrator.cli.main", *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stderr


def test_no_driver_is_one_line(model_dir: Path, tmp_path: Path) -> None:
    # A driver that cannot be loaded stands before one that this machine may have.
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    code, err = in_a_process_of_its_own(
        {"LD_LIBRARY_PATH": str(tmp_path)}, "generate", "--model", model_dir, *IDS, "--device", "cuda"
    )
    assert code == 2
    assert says(err, "error: no NVIDIA driver is installed here … install it, or use --device cpu"), err


def test_a_driver_is_found_where_the_system_finds_libraries(model_dir: Path) -> None:
    environment = {"LD_LIBRARY_PATH": str(build()), "CUDA_ON_CPU": "count=2"}
    arguments = ("generate", "--model", model_dir, *IDS, "--device", "cuda:3")
    code, err = in_a_process_of_its_own(environment, *arguments)
    assert code == 2
    assert says(err, "error: cuda:3: this box has cards cuda:0 to cuda:1"), err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # 500 MB of which 512 stay free.
        ({"memory": 500_000_000}, "error: device cuda:0: … missing: expected … experts on 'head' … leaves"),
        (
            {"others": 1 << 30},
            "error: device cuda:0: … missing: … leaves 0 B, of which 0 B stay free … --device cpu",
        ),
        ({"count": 0}, "error: cuda:0 is in the plan, but the NVIDIA driver shows no card here"),
    ],
)
def test_a_plan_that_a_card_has_no_room_for_is_refused_before_anything_is_read(
    card: Card, potluck: Potluck, model_dir: Path, tmp_path: Path, settings: dict[str, int], expected: str
) -> None:
    for name, value in settings.items():
        card.set(name, value)
    path = tmp_path / "plan.json"
    write_plan(on_card(model_dir, "cuda"), path)
    code, out, err = potluck("generate", "--model", model_dir, *IDS, "--plan", path)
    assert (code, out) == (2, "")
    assert says(err, expected), err


def test_a_device_beside_a_plan_that_has_another_is_refused(
    potluck: Potluck, model_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    write_plan(even_plan(open_model(model_dir).shape, 0, "float32"), path)
    code, _, err = potluck("generate", "--model", model_dir, *IDS, "--plan", path, "--device", "cuda")
    assert code == 2
    assert says(err, "error: --device with --plan: … the head computes on cpu … leave out --device"), err


def test_statistics_are_read_though_there_is_no_card_and_refused_beside_a_plan(
    potluck: Potluck, model_dir: Path, tmp_path: Path
) -> None:
    command = ("generate", "--model", model_dir, *IDS, "--device", "cpu", "--stats", tmp_path / "none.npz")
    code, out, err = potluck(*command)
    assert (code, out) == (2, "")
    assert says(err.splitlines()[-1], f"error: {tmp_path / 'none.npz'}"), err
    code, _, err = potluck(*command, "--workers", 1)
    assert code == 2
    assert "--stats with --workers" in err


def test_the_head_gets_the_card_that_was_asked_for_or_has_most_room(card: Card) -> None:
    card.set("count", 2)
    assert [found.device for found in devices_for("cuda:1").cards] == ["cuda:1", "cuda:0"]
    assert [found.device for found in devices_for("auto").cards] == ["cuda:0", "cuda:1"]
    assert devices_for("auto").head == "cuda:0"
    assert devices_for("cpu").cards == ()


def test_without_a_usable_card_auto_is_the_cpu_and_says_why(card: Card) -> None:
    card.set("capability", 61)
    assert devices_for("auto").cards == ()
    assert "compute capability 6.1" in devices_for("auto").why_cpu
    card.set("count", 0)
    assert devices_for("auto").why_cpu == "the NVIDIA driver shows no card here"
    with pytest.raises(InputError):
        devices_for("cuda:")


def test_what_other_programs_hold_is_not_free(card: Card) -> None:
    (before,) = devices_for("cuda").cards
    card.set("others", 100_000_000)
    (after,) = devices_for("cuda").cards
    assert after.num_bytes == before.num_bytes - 100_000_000
    assert after.usable_bytes == after.num_bytes - 512_000_000
