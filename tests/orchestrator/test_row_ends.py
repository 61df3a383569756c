"""Rows of many sequences in one call: what a call for each of them would have done."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import orchestrator.model
from orchestrator.model.kv_cache import KVCache
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.mtp_state import MtpState
from orchestrator.model.native import row_ends
from orchestrator.model.waiting_rows import WaitingRows, append_each
from placement.errors import KvDoesNotFit, NativeCodeNotBuilt
from placement.kv_size import KvForm, row_pages
from workers.model_config import LayerConfig

HIDDEN = 3
SLIDING = LayerConfig(0, True, 2, 1, 2, 1e4, 2, None, False, 0.0, 0.0)
STEPS = st.lists(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 1, 1, 2, 130, 200]), st.integers(0, 2)), min_size=1, max_size=4
    ),
    max_size=30,
)
"""Of each sequence in a step, rows that it keeps, and rows behind them of drafts that were rejected."""


def state_in(pool: KvPool) -> MtpState:
    """Of a sequence with one MTP layer, which sees five rows."""
    return MtpState((KVCache((SLIDING,), 5, KvForm.float32, pool),), HIDDEN, (4,), pool)


@given(STEPS)
def test_sequences_keep_the_rows_of_a_step_as_each_would_alone(steps: list[list[tuple[int, int]]]) -> None:
    pools = KvPool(1 << 30), KvPool(1 << 30)
    together, alone = ([state_in(pool) for _ in range(4)] for pool in pools)
    value = 0.0
    for parts in steps:
        firsts, counts, at = [], [], 0
        for kept, rejected in parts:
            firsts.append(at)
            counts.append(kept)
            at += kept + rejected
        hidden_states = torch.arange(at * HIDDEN, dtype=torch.float32).view(at, HIDDEN) + value
        value += at * HIDDEN
        ends = [state.rows[0] for state in together[: len(parts)]]
        for place in append_each(list(zip(ends, firsts, counts, strict=True)), hidden_states):
            together[place].defer(hidden_states[firsts[place] : firsts[place] + counts[place]])
        for state, first, count in zip(alone, firsts, counts, strict=False):
            state.defer(hidden_states[first : first + count])
        hidden_states.zero_()
    for one, other in zip(together, alone, strict=True):
        assert one.num_hidden == other.num_hidden
        assert tuple(one.behind) == tuple(other.behind)
        (own,), (rows,) = one.rows, other.rows
        assert (own.start, own.stop, own.room, own.nbytes) == (rows.start, rows.stop, rows.room, rows.nbytes)
        assert torch.equal(own.rows(), rows.rows())
    assert pools[0].used_bytes == pools[1].used_bytes


def test_who_has_no_room_gets_no_row_and_the_others_get_theirs() -> None:
    pool = KvPool(1 << 20)
    first, full, last = (WaitingRows(HIDDEN, pool) for _ in range(3))
    for rows, count in ((first, 1), (full, 127), (last, 2)):
        rows.append(torch.zeros(count, HIDDEN))
    step = torch.arange(12, dtype=torch.float32).view(4, HIDDEN)
    assert append_each([(first, 0, 1), (full, 1, 2), (last, 3, 1)], step) == [1]
    assert (len(first), len(full), len(last)) == (2, 127, 3)
    assert torch.equal(first.rows(1), step[:1])
    assert torch.equal(last.rows(2), step[3:])
    # A place that is full to the last row takes none, and all of them.
    assert append_each([(full, 1, 1)], step) == []
    assert append_each([(full, 0, 0), (full, 2, 1)], step) == [1]
    assert torch.equal(full.rows(127), step[1:2])


def test_rows_that_have_no_page_are_refused_in_a_line() -> None:
    rows = WaitingRows(HIDDEN, KvPool(row_pages(HIDDEN).page_bytes))
    rows.append(torch.zeros(120, HIDDEN))
    with pytest.raises(KvDoesNotFit, match="go without drafts"):
        rows.append(torch.zeros(9, HIDDEN))


@pytest.mark.parametrize(("first", "count"), [(2, 1), (0, 3), (-1, 1), (1, -1), (3, 0), (1 << 62, 1 << 62)])
def test_rows_that_are_not_there_are_copied_to_nobody(first: int, count: int) -> None:
    rows = WaitingRows(HIDDEN, KvPool(1 << 20))
    rows.append(torch.ones(1, HIDDEN))
    with pytest.raises(ValueError, match="of 2"):
        append_each([(rows, first, count)], torch.zeros(2, HIDDEN))
    assert torch.equal(rows.rows(), torch.ones(1, HIDDEN))


def test_a_number_of_rows_that_is_absurd_is_told_as_it_is() -> None:
    with pytest.raises(ValueError, match=f"{1 << 62} rows from row {1 << 62} on, of 2"):
        append_each([(WaitingRows(HIDDEN, KvPool(1)), 1 << 62, 1 << 62)], torch.zeros(2, HIDDEN))


@pytest.mark.parametrize(
    "others",
    [
        torch.zeros(4, HIDDEN, dtype=torch.bfloat16),
        torch.zeros(4, HIDDEN, dtype=torch.float64),
        torch.zeros(4, HIDDEN - 1),
        torch.zeros(1, HIDDEN).expand(4, HIDDEN),
        torch.zeros(4, 2 * HIDDEN)[:, :HIDDEN],
    ],
)
def test_rows_of_another_size_or_with_gaps_are_copied_to_nobody(others: torch.Tensor) -> None:
    rows = WaitingRows(HIDDEN, KvPool(1 << 20))
    rows.append(torch.ones(1, HIDDEN))
    with pytest.raises(ValueError, match=r"side by side|rows have 12"):
        append_each([(rows, 0, 4)], others)
    assert torch.equal(rows.rows(), torch.ones(1, HIDDEN))


def test_a_call_that_is_wrong_is_told() -> None:
    rows = WaitingRows(HIDDEN, KvPool(1 << 20))
    for wrong in (
        ([(rows, 0, 0)], 0, 1),
        ([(rows, 0)], 0, 1, 12),
        ([(rows, 0, 0, 0)], 0, 1, 12),
        ([[rows, 0, 0]], 0, 1, 12),
        ([(rows, 0.0, 0)], 0, 1, 12),
        ([(rows, 0, 0.0)], 0, 1, 12),
        ([(rows, 0, 0)], "0", 1, 12),
        ([(rows, 0, 0)], 0, "1", 12),
        ([(rows, 0, 0)], 0, 1, "12"),
        (rows, 0, 1, 12),
    ):
        with pytest.raises(TypeError):
            row_ends.append_each(*wrong)  # type: ignore[arg-type, call-arg]
    with pytest.raises(TypeError, match="RowEnd"):
        row_ends.append_each([(object(), 0, 1)], 0, 1, 12)  # type: ignore[list-item]
    for num_rows, row_bytes in ((-1, 12), (1, -12)):
        with pytest.raises(ValueError, match="from 0 on"):
            row_ends.append_each([(rows, 0, 1)], 0, num_rows, row_bytes)
    with pytest.raises(OverflowError):
        row_ends.append_each([(rows, 0, 1 << 64)], 0, 1, 12)
    # Nothing has a place for rows before it has a page.
    assert row_ends.append_each([(rows, 0, 1), (rows, 0, 0)], 0, 1, 12) == [0]


def test_who_has_no_end_takes_none() -> None:
    rows = WaitingRows(HIDDEN, KvPool(1 << 20))
    rows.append(torch.zeros(1, HIDDEN))
    step = torch.arange(6, dtype=torch.float32).view(2, HIDDEN)
    assert append_each([(None, 0, 1), (rows, 1, 1), (None, 1, 1)], step) == [0, 2]
    assert torch.equal(rows.rows(1), step[1:])


def test_code_that_was_not_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orchestrator.model._row_ends", None)
    monkeypatch.delattr(orchestrator.model, "_row_ends")
    monkeypatch.delitem(sys.modules, "orchestrator.model.native")
    with pytest.raises(NativeCodeNotBuilt, match=r"orchestrator\.model: .* run `make demo`"):
        importlib.import_module("orchestrator.model.native")
