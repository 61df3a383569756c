"""When missing boxes are tried again, and how a keeper is found."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster.keeper import (
    FIRST_PAUSE_S,
    KEEPER,
    LONGEST_PAUSE_S,
    Keeping,
    Pauses,
    end_keeper,
    find_keeper,
    only_one,
)
from orchestrator.cluster.private_files import write_private


def test_a_missing_box_is_tried_less_and_less_often() -> None:
    pauses, now_s, tried = Pauses(), 0.0, []
    while now_s < 400:
        if pauses.due({"den": "why"}, now_s):
            tried.append(now_s)
        now_s += 1.0
    gaps = [after - before for before, after in pairwise(tried)]
    assert tried[0] == 0.0
    assert gaps[0] == FIRST_PAUSE_S
    assert gaps == sorted(gaps)
    assert gaps[-1] == LONGEST_PAUSE_S


def test_one_that_was_back_is_tried_at_once_when_it_misses_again() -> None:
    pauses = Pauses()
    for now_s in (0.0, 5.0, 15.0):
        assert pauses.due({"den": "why"}, now_s) == ["den"]
    assert pauses.due({}, 16.0) == []
    assert pauses.due({"den": "why", "attic": "why"}, 17.0) == ["den", "attic"]


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
