"""The short form of `benchmarks.fuzz_wire`."""

from __future__ import annotations

import random

import pytest

from benchmarks.fuzz_wire import run
from benchmarks.mutations import Mutations


@pytest.mark.parametrize(("keys", "wire"), [(False, "tcp"), (True, "tcp"), (False, "ipc")])
def test_mutated_messages_harm_neither_the_worker_nor_its_head(keys: bool, wire: str) -> None:
    outcome = run(6000, keys=keys, wire=wire, seed=keys)
    assert outcome.failures == []
    assert outcome.frames >= 6000
    assert outcome.served > 10
    # Refused at every depth, and some are still messages.
    assert {"malformed", "bad_version", "bad_shape", "unknown_layer", "Pong"} <= set(outcome.answers)


def test_a_seed_gives_the_same_mutations_again() -> None:
    first, second = (Mutations(random.Random(3)) for _ in range(2))
    assert [first.next() for _ in range(200)] == [second.next() for _ in range(200)]
