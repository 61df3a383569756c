"""How traces become passes: windows, luck with drafts, chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import InputError, RoutingFileError
from placement.replay import steps as steps_module
from placement.replay.steps import Acceptance, split_trace, step_blocks
from placement.workload import Workload
from tests.examples import examples
from tests.placement.runs import SHAPE, random_trace


def in_chunks(trace: np.ndarray[Any, Any], sizes: list[int]) -> Iterator[np.ndarray[Any, Any]]:
    start = 0
    for size in sizes:
        yield trace[start : start + size]
        start += size
    yield trace[start:]


def passes(*args: Any, **kwargs: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    blocks = list(step_blocks(SHAPE, *args, **kwargs))
    return np.concatenate([b.expert_ids for b in blocks]), np.concatenate([b.new_tokens for b in blocks])


def test_without_luck_every_token_runs_once_and_a_rest_is_left_out() -> None:
    trace = random_trace(0, 11)
    expert_ids, new_tokens = passes(Workload(drafts=2, accepted_drafts=1.5), [trace])
    assert expert_ids.shape == (3, 3, 3, 3)
    assert np.array_equal(expert_ids[1, :, 2], trace[5])
    assert new_tokens.tolist() == [[2.5]] * 3


def test_columns_hold_every_choice_of_all_steps_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "_STEPS_COPIED", 4)
    (block,) = step_blocks(SHAPE, Workload(drafts=1), [random_trace(3, 22)])
    columns = block.columns()
    assert columns.shape == (2, 3, 3, 11)
    for step, layer in np.ndindex(11, 3):
        assert np.array_equal(columns[:, :, layer, step], block.expert_ids[step, layer])
    assert columns.strides[-1] == columns.itemsize


def test_the_next_pass_starts_behind_the_last_accepted_draft() -> None:
    trace = random_trace(1, 400)
    expert_ids, new_tokens = passes(Workload(drafts=3), [trace], Acceptance((0.8, 0.6, 0.5), seed=4))
    position = 0
    for ids, new in zip(expert_ids, new_tokens[:, 0].astype(int), strict=True):
        assert np.array_equal(ids.transpose(1, 0, 2), trace[position : position + 4])
        position += new
    assert position + 4 > 400


def test_luck_has_the_given_odds_and_its_seed_repeats_it() -> None:
    acceptance = Acceptance((0.8, 0.5), seed=1)
    accepted = acceptance.draw(acceptance.generator(0), 100_000)
    assert (accepted >= 1).mean() == pytest.approx(0.8, abs=0.01)
    assert (accepted == 2).mean() == pytest.approx(0.4, abs=0.01)
    assert accepted.mean() == pytest.approx(acceptance.mean_accepted, abs=0.01)
    assert np.array_equal(accepted, acceptance.draw(acceptance.generator(0), 100_000))
    assert not np.array_equal(accepted, acceptance.draw(acceptance.generator(1), 100_000))


def test_a_runs_counts_give_its_odds() -> None:
    assert Acceptance.from_counts(100, (80, 40, 0)).probabilities == pytest.approx((0.8, 0.5, 0))
    assert Acceptance.from_counts(100, (0, 0)).probabilities == (0, 0)


@given(
    sizes=st.lists(st.integers(0, 700), max_size=12),
    seed=st.integers(0, 100),
    drafts=st.integers(0, 3),
    sequences=st.integers(1, 2),
)
@examples(30)
def test_any_chunking_gives_the_same_blocks(sizes: list[int], seed: int, drafts: int, sequences: int) -> None:
    traces = split_trace(random_trace(seed, 9000), sequences)
    workload = Workload(num_sequences=sequences, drafts=drafts)
    luck = Acceptance((0.7, 0.6, 0.5)[:drafts], seed)
    whole = list(step_blocks(SHAPE, workload, traces, luck))
    parts = list(step_blocks(SHAPE, workload, [in_chunks(trace, sizes) for trace in traces], luck))
    assert [b.num_steps for b in whole] == [b.num_steps for b in parts]
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one.expert_ids, other.expert_ids)
        assert np.array_equal(one.new_tokens, other.new_tokens)


def test_sequences_of_their_own_run_side_by_side() -> None:
    one, other = random_trace(0, 10), random_trace(1, 8)
    expert_ids, new_tokens = passes(Workload(num_sequences=2, drafts=1), [one, other])
    assert len(expert_ids) == 4
    assert np.array_equal(expert_ids[2].transpose(1, 0, 2), np.concatenate([one[4:6], other[4:6]]))
    assert new_tokens.shape == (4, 2)


def test_what_does_not_go_together_is_said() -> None:
    trace = random_trace(0, 10)
    with pytest.raises(InputError, match=r"expected 1 or 3 \(sequences\), found 2"):
        passes(Workload(num_sequences=3), [trace, trace])
    with pytest.raises(InputError, match="expected 2 traces, found 1"):
        passes(Workload(num_sequences=2, drafts=1), [trace], Acceptance((0.5,)))
    with pytest.raises(InputError, match=r"expected 2 probabilities \(drafts a step\), found 1"):
        passes(Workload(drafts=2), [trace], Acceptance((0.5,)))
    with pytest.raises(InputError, match=r"expected at least 20 tokens, one pass of 20, found 10"):
        passes(Workload(drafts=19), [trace])
    with pytest.raises(InputError, match=r"probabilities from 0 to 1, found 1[.]5"):
        Acceptance((1.5,))


def test_a_trace_of_another_model_is_refused() -> None:
    with pytest.raises(RoutingFileError, match=r"shape \[tokens, 3, 3\].*found uint16 \[5, 2, 3\]"):
        passes(Workload(), [random_trace(0, 5)[:, :2]])
    with pytest.raises(RoutingFileError, match="experts 0 to 9 of small, found 10 to 10"):
        passes(Workload(), [np.full((5, 3, 3), 10)])
