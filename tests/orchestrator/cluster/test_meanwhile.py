"""What takes long says so, and no longer than it takes."""

from __future__ import annotations

import threading

import pytest

from orchestrator.cluster.meanwhile import told_meanwhile


def test_what_takes_long_says_so_until_it_ends() -> None:
    told: list[str] = []
    twice = threading.Event()

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == 2:
            twice.set()

    with told_meanwhile("Ray on the head", tell, every_s=0.01):
        assert twice.wait(30.0)
    so_far = len(told)
    assert told[0] == "Ray on the head: 0 s so far"
    with pytest.raises(KeyError), told_meanwhile("keys", tell, every_s=60.0):
        raise KeyError
    assert len(told) == so_far
