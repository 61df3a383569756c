"""A plan that would not run as it says is refused before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.even_plan import even_plan
from orchestrator.runnable import check_runnable
from orchestrator.session import open_session
from placement.errors import PlanError
from placement.plan import LOCAL_WORKER, Plan, like_layers
from placement.plan_file import write_plan
from tests.cuda_on_cpu.card import Card
from tests.orchestrator.command_line import Potluck, says
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.open_model import open_model
from workers.model_config import Step35Config

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("runnable") / "model", seed=2)


def planned(model_dir: Path, num_workers: int, *, device: str, kind: str) -> Plan:
    """All experts on such workers, or on such a head."""
    plan = even_plan(Step35Config.load(model_dir).shape("model"), num_workers, "float32")
    return replace(plan, tiers=tuple(replace(tier, device=device, kind=kind) for tier in plan.tiers))


@pytest.mark.parametrize(
    ("num_workers", "device", "kind", "expected"),
    [
        (0, "mps", "ram", "'head' … 'mps' … CPUs"),
        (0, "cuda:x", "vram", "'head' … 'cuda:x' … NVIDIA"),
        (0, "cuda:01", "vram", "'head' … 'cuda:01' … NVIDIA"),
        (1, "cpu", "vram", "'worker-0' … vram … 'cpu' … NVIDIA"),
        (1, "cuda:0", "ram", "'worker-0' … ram … 'cuda:0' … CPUs"),
    ],
)
def test_memory_and_devices_that_this_release_cannot_run_are_refused_in_one_line(
    potluck: Potluck, model_dir: Path, tmp_path: Path, num_workers: int, device: str, kind: str, expected: str
) -> None:
    plan, path = planned(model_dir, num_workers, device=device, kind=kind), tmp_path / "plan.json"
    write_plan(plan, path)
    arguments = ("generate", "--model", model_dir, "--plan", path, "--token-ids", "5,6,7", "--max-tokens", 2)
    code, out, err = potluck(*arguments)
    assert (code, out) == (2, "")
    assert says(err, f"error: {path}: … {expected}"), err
    assert "plan with" in err or "plan again" in err
    with pytest.raises(PlanError, match="potluck simulate"), open_session(open_model(model_dir), plan):
        pass


def test_a_device_of_a_box_is_named_with_its_box(model_dir: Path) -> None:
    plan = planned(model_dir, 2, device="cpu", kind="ram")
    first, second = plan.tiers
    plan = replace(plan, tiers=(replace(first, worker="den"), replace(second, worker="den", kind="vram")))
    with pytest.raises(PlanError, match="worker 'den', device 'worker-1': its experts are in vram"):
        check_runnable(plan)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_experts_on_a_disk_give_the_same_tokens(
    potluck: Potluck, model_dir: Path, tmp_path: Path, num_workers: int
) -> None:
    outputs = []
    for kind, number in (("ram", 0), ("disk", num_workers)):
        path = tmp_path / f"{kind}.json"
        write_plan(planned(model_dir, number, device="cpu", kind=kind), path)
        code, out, _ = potluck(
            "generate", "--model", model_dir, "--plan", path, "--token-ids", "5,6,7", "--max-tokens", 9
        )
        assert code == 0
        outputs.append(out)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("kinds", [("vram",), ("vram", "ram")])
def test_experts_on_a_card_give_the_same_tokens(
    card: Card, potluck: Potluck, model_dir: Path, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    """In the head's process; the head itself computes on the CPU."""
    outputs = []
    for on_card in (False, True):
        plan, path = planned(model_dir, len(kinds), device="cpu", kind="ram"), tmp_path / f"{on_card}.json"
        tiers = tuple(
            replace(
                tier,
                name=f"head-{number}",
                worker=LOCAL_WORKER,
                kind=kind if on_card else "ram",
                device="cuda" if on_card and kind == "vram" else "cpu",
            )
            for number, (tier, kind) in enumerate(zip(plan.tiers, kinds, strict=True))
        )
        write_plan(replace(plan, tiers=tiers), path)
        code, out, err = potluck(
            "generate", "--model", model_dir, "--plan", path, "--token-ids", "5,6,7", "--max-tokens", 9
        )
        assert code == 0, err
        outputs.append(out)
    assert outputs[0] == outputs[1]
    assert card.count("graphs") > 0


@pytest.mark.parametrize(
    ("num_workers", "device", "kind"),
    [(0, "cpu:0", "ram"), (2, "cpu", "ram"), (0, "cuda", "vram"), (2, "cuda:1", "vram")],
)
def test_experts_in_ram_on_cpus_and_in_vram_on_cards_are_taken(
    model_dir: Path, num_workers: int, device: str, kind: str
) -> None:
    check_runnable(planned(model_dir, num_workers, device=device, kind=kind))


def test_a_dtype_that_this_release_does_not_run_is_refused(model_dir: Path) -> None:
    plan = planned(model_dir, 0, device="cpu", kind="ram")
    plan = replace(plan, layers=like_layers(plan.moe_layers, "nvfp4", plan.mean_expert_bytes))
    with pytest.raises(PlanError, match="keeps experts in 'nvfp4'"):
        check_runnable(plan)
