"""A run takes the workers of a cluster only where they are those of the plan in use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from orchestrator.cluster import running as running_module
from orchestrator.cluster.heads import Heads
from orchestrator.cluster.keys_folder import ensure_keys
from orchestrator.cluster.run_state import RUN, RunStateError, write_run_state
from orchestrator.cluster.running import running_cluster
from tests.orchestrator.cluster.test_run_state import STATE, WORKER
from tests.orchestrator.command_line import says
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from workers.model_config import Step35Config


def test_what_runs_by_another_plan_is_told_with_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Step35Config.load(write_random_checkpoint(tmp_path / "m", seed=3)).shape("tiny")
    plan = random_plan(shape, 1, seed=4)
    ensure_keys(tmp_path, "home", {"study": "10.0.0.1", "den": "10.0.0.2"})
    with Heads(tmp_path) as heads:
        write_run_state(tmp_path, STATE)
        with pytest.raises(RunStateError) as caught, running_cluster(tmp_path, heads, plan):
            pass
        assert says(
            str(caught.value), "run.json: of another plan than /x/plan.json, which has no … 'den-ram'"
        )
        name = plan.asked_workers[0].name
        write_run_state(tmp_path, replace(STATE, workers=(replace(WORKER, name=name),)))
        with running_cluster(tmp_path, heads, plan) as running:
            assert set(running.wait_ready()) == {name}
            moved = replace(WORKER, name=name, endpoint="tcp://10.0.0.2:4001")
            write_run_state(tmp_path, replace(STATE, workers=(moved,)))
            assert running.now_at()[name].endpoint == "tcp://10.0.0.2:4001"
            (tmp_path / RUN).write_text("half", encoding="utf-8")
            assert running.now_at() == {}
            with monkeypatch.context() as patch:
                patch.setattr(running_module, "read_run_state", Mock(side_effect=PermissionError))
                assert running.now_at() == {}
