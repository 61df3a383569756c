"""What tokens choose lately: old choices fade, broken passes leave nothing, pieces are whole."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.migration.online_routing import OnlineRouting


def record(routing: OnlineRouting, experts: list[list[int]], layers: tuple[int, ...] = (3, 4)) -> None:
    for layer in layers:
        routing.record(layer, np.array(experts, dtype=np.int32))


def test_a_choice_counts_half_after_the_half_life() -> None:
    routing = OnlineRouting((3, 4), 4, half_life_tokens=10)
    record(routing, [[0, 1]])
    for _ in range(10):
        record(routing, [[2, 3]])
    lately = routing.lately()
    assert lately.counts[:, 0] == pytest.approx(0.5)
    assert lately.counts.sum(axis=1) == pytest.approx(2 * lately.num_tokens)
    for _ in range(1000):
        record(routing, [[2, 3]])
    # All that was before is worth as much as one half life's tokens are, at most.
    assert routing.lately().counts[:, 0].max() < 1e-20
    assert routing.lately().num_tokens == pytest.approx(1 / (1 - 0.5**0.1))


def test_a_pass_that_was_lost_leaves_nothing() -> None:
    routing = OnlineRouting((3, 4), 4)
    record(routing, [[0, 1]], layers=(3,))
    routing.drop_unfinished()
    record(routing, [[2, 3], [2, 1]])
    assert routing.lately().counts.tolist() == [[0, 1, 2, 1]] * 2
    assert routing.lately().num_tokens == 2


def test_the_first_pieces_are_what_the_plan_is_for_until_somebody_says_otherwise() -> None:
    routing = OnlineRouting((3, 4), 4, piece_tokens=4, num_pieces=2)
    for expert in (0, 0, 1, 2, 3):
        for _ in range(4):
            record(routing, [[expert]])
    lately = routing.lately()
    assert lately.before[:, 0].argmax(axis=1).tolist() == [0, 0]
    # Of the newer ones only as many are kept.
    assert lately.since[:, 0].argmax(axis=1).tolist() == [2, 3]
    assert (lately.since.sum(axis=2) == 4).all()
    routing.planned()
    lately = routing.lately()
    assert lately.before[:, 0].argmax(axis=1).tolist() == [2, 3]
    assert len(lately.since) == 0
