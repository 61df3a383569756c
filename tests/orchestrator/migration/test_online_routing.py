"""What tokens choose lately: old choices are forgotten, broken passes leave nothing, pieces are whole."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.migration.online_routing import Lately, OnlineRouting


def record(routing: OnlineRouting, experts: list[list[int]], layers: tuple[int, ...] = (3, 4)) -> None:
    for layer in layers:
        routing.record(layer, np.array(experts, dtype=np.int32) + layer - 3)


def test_the_newest_choices_are_kept_token_by_token_and_no_others() -> None:
    routing = OnlineRouting((3, 4), piece_tokens=4, num_pieces=2)
    tokens = np.random.default_rng(0).permuted(np.tile(np.arange(50), (40, 1)), axis=1)[:, :2]
    # Of different lengths, as prompts and steps come; a piece ends with a pass.
    first = 0
    for length in (1, 3, 2, 6, 1, 1, 1, 1, 3, 5, 9, 2, 2):
        record(routing, tokens[first : first + length].tolist())
        first += length
    lately = routing.lately()
    assert [len(piece) for piece in (*lately.before, *lately.since)] == [4, 8, 9, 4]
    # Of 8 and of 4 tokens that lie between nothing is left.
    kept = np.concatenate([tokens[0:12], tokens[24:37]])
    found = np.concatenate([*lately.before, *lately.since])
    assert found.dtype == np.uint16
    assert found.tolist() == np.stack([kept, kept + 1], axis=1).tolist()


def test_memory_is_bounded_by_the_pieces() -> None:
    routing = OnlineRouting((3, 4), piece_tokens=8, num_pieces=3)
    for token in range(1000):
        record(routing, [[token % 7, 8]])
    lately = routing.lately()
    assert [piece.nbytes for piece in (*lately.before, *lately.since)] == [8 * 2 * 2 * 2] * 6


def test_what_was_recorded_does_not_change_with_the_array_that_it_came_in() -> None:
    routing = OnlineRouting((3, 4), piece_tokens=1)
    chosen = np.array([[1, 2]], dtype=np.int32)
    for layer in (3, 4):
        routing.record(layer, chosen)
        chosen += 1
    assert routing.lately().before[0].tolist() == [[[1, 2], [2, 3]]]


def test_a_pass_that_was_lost_leaves_nothing() -> None:
    routing = OnlineRouting((3, 4), piece_tokens=2)
    record(routing, [[0, 1]], layers=(3,))
    routing.drop_unfinished()
    record(routing, [[2, 3], [2, 1]])
    (piece,) = routing.lately().before
    assert piece.tolist() == [[[2, 3], [3, 4]], [[2, 1], [3, 2]]]


def test_the_first_pieces_are_what_the_plan_is_for_until_somebody_says_otherwise() -> None:
    routing = OnlineRouting((3, 4), piece_tokens=4, num_pieces=2)
    for expert in (0, 0, 1, 2, 3):
        for _ in range(4):
            record(routing, [[expert]])
    lately = routing.lately()
    assert [piece[:, 0, 0].tolist() for piece in lately.before] == [[0] * 4] * 2
    # Of the newer ones only as many are kept.
    assert [piece[:, 0, 0].tolist() for piece in lately.since] == [[2] * 4, [3] * 4]
    routing.planned()
    lately = routing.lately()
    assert [piece[:, 0, 0].tolist() for piece in lately.before] == [[2] * 4, [3] * 4]
    assert lately.since == ()


def test_a_step_is_timed_from_the_last_one_and_prompts_are_no_steps() -> None:
    now_s = 0.0
    routing = OnlineRouting((3, 4), clock=lambda: now_s)
    assert routing.lately().step_s == 0
    for seconds, length in ((1.0, 1), (0.25, 1), (0.5, 2), (9.0, 60), (7.0, 1), (0.75, 1)):
        now_s += seconds
        record(routing, [[0, 1]] * length)
    assert routing.lately().step_s == pytest.approx(0.5)


def test_a_run_goes_on_where_the_one_before_it_ended() -> None:
    whole, first = (OnlineRouting((3, 4), piece_tokens=4, num_pieces=2) for _ in range(2))
    tokens = [[token % 50, 60] for token in range(22)]
    for token in tokens:
        record(whole, [token])
    for token in tokens[:11]:
        record(first, [token])
    then = OnlineRouting((3, 4), piece_tokens=4, num_pieces=2, known=first.lately())
    for token in tokens[11:]:
        record(then, [token])
    for one, other in zip(groups(whole.lately()), groups(then.lately()), strict=True):
        assert one == other


def groups(lately: Lately) -> tuple[list[object], list[object], list[object]]:
    before, since = ([piece.tolist() for piece in some] for some in (lately.before, lately.since))
    return before, since, np.concatenate(lately.rest).tolist()
