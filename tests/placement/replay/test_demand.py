"""Counts of a layer's work against sets of Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.assign import many_steps
from placement.assign.many_steps import assign_columns, assign_steps
from placement.assign.one_step import ReplicaCosts, assign_experts
from placement.holders import HolderTable
from placement.replay.demand import count_columns, count_demand, steps_on


@given(
    seed=st.integers(0, 10_000),
    num_tokens=st.integers(1, 5),
    num_devices=st.one_of(st.integers(1, 6), st.integers(30, 34)),
    replicas=st.booleans(),
)
def test_counts_are_those_of_the_dispatchers_choice(
    seed: int, num_tokens: int, num_devices: int, replicas: bool
) -> None:
    generator = np.random.default_rng(seed)
    ids = np.argsort(generator.random((7, num_tokens, 12)), axis=2)[:, :, :4].astype(np.uint16)
    masks = generator.random((num_devices, 1, 12)) < (0.5 if replicas else 0.0)
    masks[0] |= ~masks.any(axis=0)
    holders = HolderTable.from_masks(masks).layers[0]
    costs = ReplicaCosts(generator.random(num_devices), generator.random(num_devices))
    chosen = assign_steps(ids, holders, costs)
    demand = count_demand(chosen, ids, num_devices, 12)
    for step in range(7):
        expected = assign_experts(ids[step], holders, costs)
        assert np.array_equal(chosen[step], expected)
        for device in range(num_devices):
            here = expected == device
            assert demand.rows[step, device] == here.any(axis=1).sum()
            assert demand.pairs[step, device] == here.sum()
            assert demand.distinct[step, device] == len(set(ids[step][here].tolist()))


@pytest.mark.parametrize("num_devices", [3, 400])
@pytest.mark.parametrize("num_tokens", [1, 64])
def test_wide_keys_and_many_choices_do_not_overflow(num_devices: int, num_tokens: int) -> None:
    """64 tokens of 8 choices are more than a byte counts; 400 devices of 300 experts more than 16 bits."""
    generator = np.random.default_rng(0)
    ids = np.argsort(generator.random((3, num_tokens, 300)), axis=2)[:, :, :8].astype(np.uint16)
    holders = HolderTable.from_single(np.full((1, 300), num_devices - 1)).layers[0]
    demand = count_demand(holders.single.take(ids), ids, num_devices, 300)
    assert demand.pairs[:, -1].tolist() == [num_tokens * 8] * 3
    assert demand.rows[:, -1].tolist() == [num_tokens] * 3
    assert demand.distinct[:, -1].tolist() == [len(set(step.ravel().tolist())) for step in ids]
    assert not demand.pairs[:, :-1].any()


@given(seed=st.integers(0, 10_000), num_tokens=st.integers(1, 5), num_workers=st.integers(1, 5))
def test_what_the_choice_knows_of_repeats_is_what_sorting_finds(
    seed: int, num_tokens: int, num_workers: int
) -> None:
    """Two layers, and a device more than the plan has workers: a head without experts."""
    generator = np.random.default_rng(seed)
    ids = np.argsort(generator.random((num_tokens, 2, 7, 12)), axis=3)[..., :4].transpose(0, 3, 1, 2)
    masks = generator.random((num_workers, 2, 12)) < 0.5
    masks[0] |= ~masks.any(axis=0)
    costs = ReplicaCosts(*generator.random((2, num_workers)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many_steps, "_FEW_STEPS", 0)
        choices = assign_columns(ids, HolderTable.from_masks(masks).layers, costs)
    known = count_columns(choices.workers, ids, num_workers + 1, 12, choices.repeats)
    found = count_columns(choices.workers, ids, num_workers + 1, 12)
    assert np.array_equal(known.distinct, found.distinct)
    assert np.array_equal(known.rows, found.rows)
    for device in range(num_workers + 1):
        one = np.arange(num_workers + 1) == device
        columns = choices.workers.reshape(num_tokens * 4, -1)
        assert np.array_equal(steps_on(columns, one), found.rows[:, device] > 0)
