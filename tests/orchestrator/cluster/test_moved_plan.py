"""The plan in use of a cluster is one file: it changes with the runs that read it, or not at all."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from orchestrator.cli.even_plan import even_plan
from orchestrator.cluster import moved_plan
from orchestrator.cluster.heads import Heads
from orchestrator.cluster.moved_plan import ANOTHER_RUN, ANOTHER_VIEW, use_plan
from orchestrator.generate import GenerationParams
from orchestrator.launch.local import local_workers
from orchestrator.session import open_session
from placement.errors import InputError
from placement.holders import HolderTable
from placement.plan import Plan
from placement.plan_file import read_plan, write_plan
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.serving import wait_until
from workers.formats.open_model import open_model

PARAMS = GenerationParams(max_tokens=6, ignore_eos=True)
PROMPT = list(range(5, 15))


def swapped(plan: Plan) -> Plan:
    """Each of two workers has what the other one had."""
    table = HolderTable.from_single(1 - np.array(plan.holder_table.table[:, :, 0]))
    return replace(plan, holder_table=table, epoch=plan.epoch + 1)


def test_a_run_knows_whether_it_is_alone(tmp_path: Path) -> None:
    first = Heads(tmp_path)
    assert first.alone()
    with Heads(tmp_path) as second:
        assert not first.alone()
        assert not second.alone()
        with first.held() as is_alone:
            assert not is_alone
    with first.held() as is_alone:
        assert is_alone
        # Another thread's question does not end it.
        assert first.alone()
    first.close()


@pytest.mark.usefixtures("quick_workers")
def test_a_moved_plan_is_used_and_written_or_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_random_checkpoint(tmp_path / "model", seed=3)
    model = open_model(tmp_path / "model")
    plan, path = even_plan(model.shape, 2, "float32"), tmp_path / "plan.json"
    write_plan(plan, path)
    with Heads(tmp_path) as heads, local_workers(plan, model.shape, model.path) as workers:
        workers.wait_ready()
        with open_session(model, plan, workers=nullcontext(workers), positions=64) as session:
            expected = session.generate(PROMPT, PARAMS).token_ids
            assert session.watched is not None
            watch = session.watched.watch
            now = watch.standing().view.plan
            orders = [watch.order(name, swapped(now).experts_of(name)) for name in ("worker-0", "worker-1")]
            wait_until(lambda: all(held and held.done for held in map(watch.ordered, orders)))
            with Heads(tmp_path):
                assert use_plan(swapped(now), path=path, heads=heads, watch=watch) == ANOTHER_RUN
            stale = replace(swapped(now), epoch=now.epoch)
            assert use_plan(stale, path=path, heads=heads, watch=watch) == ANOTHER_VIEW
            assert read_plan(path).holder_table == plan.holder_table
            with monkeypatch.context() as full_disk:
                written = Mock(side_effect=[None, OSError("no space left")])
                full_disk.setattr(moved_plan, "write_plan", written)
                why = use_plan(stale, path=path, heads=heads, watch=watch)
                assert why == f"{ANOTHER_VIEW}, and {path} cannot be written back: no space left"
            assert use_plan(swapped(now), path=path, heads=heads, watch=watch) == ""
            moved = read_plan(path)
            assert (moved.epoch, moved.holder_table) == (now.epoch + 1, swapped(now).holder_table)
            assert session.generate(PROMPT, PARAMS).token_ids == expected
        # The next head. Its workers, started from the older plan, have both halves still.
        with open_session(model, moved, workers=nullcontext(workers), positions=64) as session:
            assert session.generate(PROMPT, PARAMS).token_ids == expected
            assert session.watched is not None
            # One that is started again from the older plan serves what the plan in use gives it.
            standing = session.watched.watch.standing
            instance = standing().view.addresses[0].instance
            os.kill(workers.pids["worker-0"], signal.SIGKILL)
            wait_until(lambda: not standing().dead and standing().view.addresses[0].instance != instance)
            assert session.generate(PROMPT, PARAMS).token_ids == expected


def test_a_folder_in_which_nothing_can_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"heads\.lock: No such file or directory; expected a folder"):
        Heads(tmp_path / "missing")
