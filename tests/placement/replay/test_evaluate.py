"""The closed form on arrays equals the cost model applied step by step in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.assign.one_step import assign_experts
from placement.cost.rates import expert_rates
from placement.cost.replica_costs import replica_costs
from placement.cost.roofline import device_seconds
from placement.given.problem import PlanningProblem
from placement.holders import HolderTable
from placement.replay import steps as steps_module
from placement.replay.evaluate import evaluate
from placement.workload import Workload
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=10, top_k=3)
SIZE = SHAPE.expert_bytes(16)
DEVICES = (
    device("head", 30, SIZE, gbytes_per_s=0.01),
    device("study-ram", 30, SIZE, home=True, gbytes_per_s=0.005),
    device("attic", 30, SIZE, gbytes_per_s=0.02),
)


def step_by_step(
    problem: PlanningProblem, table: HolderTable, trace: np.ndarray[Any, Any]
) -> tuple[list[float], list[int]]:
    """Seconds and remote layers of every step, one layer after another."""
    rates, costs, tokens = expert_rates(problem), replica_costs(problem), problem.workload.tokens_per_step
    seconds, remote_layers = [], []
    for start in range(0, len(trace) - tokens + 1, tokens):
        step_seconds, remote = 0.0, 0
        for row in range(SHAPE.num_moe_layers):
            ids = trace[start : start + tokens, row]
            chosen = assign_experts(ids, table.layers[row], costs)
            rows = [int((chosen == d).any(axis=1).sum()) for d in range(3)]
            distinct = [len(set(ids[chosen == d].tolist())) for d in range(3)]
            pairs = [int((chosen == d).sum()) for d in range(3)]
            times = device_seconds(rates, np.array(rows), np.array(distinct), np.array(pairs))
            step_seconds += float(times.max())
            remote += pairs[2] > 0
        seconds.append(step_seconds)
        remote_layers.append(remote)
    return seconds, remote_layers


@given(seed=st.integers(0, 1000), drafts=st.integers(0, 3), replicas=st.booleans())
@settings(max_examples=30, deadline=None)
def test_arrays_equal_plain_python(seed: int, drafts: int, replicas: bool) -> None:
    generator = np.random.default_rng(seed)
    problem = PlanningProblem(SHAPE, DEVICES, SIZE, workload=Workload(drafts=drafts))
    trace = np.argsort(generator.random((23, 3, 10)), axis=2)[:, :, :3].astype(np.uint16)
    masks = generator.random((3, 3, 10)) < (0.5 if replicas else 0.0)
    masks[0] |= ~masks.any(axis=0)
    table = (
        HolderTable.from_masks(masks)
        if replicas
        else HolderTable.from_single(generator.integers(0, 3, (3, 10)))
    )
    evaluation = evaluate(problem, table, trace)
    seconds, remote_layers = step_by_step(problem, table, trace)
    assert evaluation.moe_seconds == pytest.approx(seconds)
    assert evaluation.remote_layers.tolist() == remote_layers
    assert evaluation.bound_share.sum() == pytest.approx(1)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    problem = PlanningProblem(SHAPE, DEVICES, SIZE, workload=Workload(drafts=1))
    trace = np.argsort(generator.random((50, 3, 10)), axis=2)[:, :, :3]
    table = HolderTable.from_single(generator.integers(0, 3, (3, 10)))
    whole = evaluate(problem, table, trace)
    monkeypatch.setattr(steps_module, "_MAX_BLOCK_STEPS", 7)
    parts = evaluate(problem, table, trace)
    assert np.array_equal(parts.moe_seconds, whole.moe_seconds)
    assert np.array_equal(parts.bound_share, whole.bound_share)
