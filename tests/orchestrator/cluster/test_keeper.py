"""When missing boxes are tried again, and how a keeper is found."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.cluster.greet import Greeted
from orchestrator.cluster.keeper import (
    FIRST_PAUSE_S,
    KEEPER,
    LONGEST_PAUSE_S,
    Keeping,
    Pauses,
    end_keeper,
    find_keeper,
    note_silence,
    only_one,
)
from orchestrator.cluster.pool import Pool
from orchestrator.cluster.private_files import write_private
from orchestrator.cluster.run_state import RunningWorker
from tests.orchestrator.damaged import DAMAGED
from transport.messages import HelloReply, WorkerState


def test_a_missing_box_is_tried_less_and_less_often() -> None:
    pauses, now_s, tried = Pauses(), 0.0, []
    while now_s < 400:
        if pauses.due({"den": "why"}, now_s):
            tried.append(now_s)
        now_s += 1.0
    gaps = [after - before for before, after in pairwise(tried)]
    # Until then it may be back by itself.
    assert tried[0] == FIRST_PAUSE_S
    assert gaps[0] == 2 * FIRST_PAUSE_S
    assert gaps == sorted(gaps)
    assert gaps[-1] == LONGEST_PAUSE_S


def test_one_that_was_back_is_tried_soon_when_it_misses_again() -> None:
    pauses = Pauses()
    assert [pauses.due({"den": "why"}, now_s) for now_s in (0.0, 5.0, 15.0)] == [[], ["den"], ["den"]]
    assert pauses.due({}, 16.0) == []
    assert pauses.due({"den": "why", "attic": "why"}, 17.0) == []
    assert pauses.due({"den": "why", "attic": "why"}, 22.0) == ["den", "attic"]


def greeted(instance: int, state: WorkerState) -> Greeted:
    reply = HelloReply(1, "den", instance, state, "f" * 16, "", "bfloat16", 3, "no such file")
    return Greeted(reply, 0.01)


def pool_with(worker: RunningWorker) -> Pool:
    # What silence means is decided without boxes, keys or ssh.
    nothing: Any = None
    pool = Pool(nothing, nothing, nothing, print, Path("/dev/null"))
    pool.running = {worker.name: worker}
    return pool


def test_a_worker_that_its_actor_started_again_is_only_noted() -> None:
    worker = RunningWorker(
        "den", "den", "10.0.0.2", "tcp://10.0.0.2:1", "tcp://10.0.0.2:2", "", 7, 1, 3, 9, 0.0
    )
    pool = pool_with(worker)
    # Dead, then loading as another process, then ready.
    assert note_silence(pool, {"den": Greeted(None, 2.0, "no answer")}) == []
    assert pool.missing == {"den": "den: no answer"}
    assert note_silence(pool, {"den": greeted(2, WorkerState.LOADING)}) == []
    assert pool.missing == {}
    assert note_silence(pool, {"den": greeted(2, WorkerState.READY)}) == ["den"]
    assert note_silence(pool, {"den": greeted(2, WorkerState.READY)}) == []
    assert pool.missing == {}


def test_a_worker_that_could_not_load_when_started_again_is_missing() -> None:
    worker = RunningWorker(
        "den", "den", "10.0.0.2", "tcp://10.0.0.2:1", "tcp://10.0.0.2:2", "", 7, 1, 3, 9, 0.0
    )
    pool = pool_with(worker)
    assert note_silence(pool, {"den": greeted(2, WorkerState.FAILED)}) == []
    assert pool.missing == {"den": "den: no such file"}


def test_a_keeper_is_its_process_and_not_one_with_its_number(tmp_path: Path) -> None:
    began = psutil.Process().create_time()
    write_private(tmp_path / KEEPER, json.dumps(asdict(Keeping(os.getpid(), began))).encode())
    found = find_keeper(tmp_path)
    assert found is not None
    assert found.pid == os.getpid()
    write_private(tmp_path / KEEPER, json.dumps(asdict(Keeping(os.getpid(), began - 60))).encode())
    assert find_keeper(tmp_path) is None
    # Nobody is ended in its place.
    end_keeper(tmp_path)
    assert not (tmp_path / KEEPER).exists()
    assert find_keeper(tmp_path) is None


def test_two_commands_do_not_change_a_cluster_at_once(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(BlockingIOError), only_one(tmp_path, waits=False):
        pass
    with only_one(tmp_path, waits=False):
        pass


@pytest.mark.parametrize("content", DAMAGED)
def test_what_a_keeper_noted_may_be_damaged(tmp_path: Path, content: bytes) -> None:
    write_private(tmp_path / KEEPER, content)
    assert find_keeper(tmp_path) is None
    end_keeper(tmp_path)
    assert not (tmp_path / KEEPER).exists()
