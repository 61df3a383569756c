"""A plan that would not run as it says is refused before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.even_plan import even_plan
from orchestrator.runnable import check_runnable
from orchestrator.session import open_session
from placement.errors import PlanError
from placement.plan import Plan
from tests.orchestrator.command_line import Potluck, says
from tests.tiny_checkpoint import write_random_checkpoint
from workers.model_config import Step35Config


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("runnable") / "model", seed=2)


def planned(model_dir: Path, num_workers: int, *, device: str, tier: str) -> Plan:
    """All experts on such workers, or on such a head."""
    plan = even_plan(Step35Config.load(model_dir).shape("model"), num_workers, "float32")
    return replace(plan, workers=tuple(replace(worker, device=device, tier=tier) for worker in plan.workers))


@pytest.mark.parametrize(
    ("num_workers", "device", "tier", "expected"),
    [
        (1, "cpu", "disk", "'worker-0' … disk"),
        (0, "cpu", "disk", "'head' … disk"),
        (0, "cuda", "vram", "'head' … 'cuda'"),
        (0, "mps", "ram", "'head' … 'mps'"),
        (1, "cpu", "vram", "'worker-0' … vram … CPU"),
    ],
)
def test_memory_and_devices_that_this_release_cannot_run_are_refused_in_one_line(
    potluck: Potluck, model_dir: Path, tmp_path: Path, num_workers: int, device: str, tier: str, expected: str
) -> None:
    plan, path = planned(model_dir, num_workers, device=device, tier=tier), tmp_path / "plan.json"
    plan.save(path)
    arguments = ("generate", "--model", model_dir, "--plan", path, "--token-ids", "5,6,7", "--max-tokens", 2)
    code, out, err = potluck(*arguments)
    assert (code, out) == (2, "")
    assert says(err, f"error: {path}: … {expected}"), err
    assert "plan with" in err or "plan again" in err
    with pytest.raises(PlanError, match="potluck simulate"), open_session(model_dir, plan):
        pass


@pytest.mark.parametrize(
    ("num_workers", "device", "tier"), [(1, "cuda:0", "vram"), (1, "mps", "ram"), (0, "cpu:0", "ram")]
)
def test_workers_on_other_torch_devices_are_taken(
    model_dir: Path, num_workers: int, device: str, tier: str
) -> None:
    check_runnable(planned(model_dir, num_workers, device=device, tier=tier))


def test_a_dtype_that_this_release_does_not_run_is_refused(model_dir: Path) -> None:
    plan = replace(planned(model_dir, 0, device="cpu", tier="ram"), dtype="q4")
    with pytest.raises(PlanError, match="keeps experts in 'q4'"):
        check_runnable(plan)
