"""The closed form on arrays equals the cost model applied step by step in plain Python."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.assign.one_step import assign_experts
from placement.cost.rates import expert_rates
from placement.cost.replica_costs import replica_costs
from placement.cost.roofline import device_seconds
from placement.given.cluster_spec import Overheads
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.holders import HolderTable
from placement.plan import LOCAL_WORKER, PlannedTier
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


# The head's process and a box have two devices each, and messages cost the head something.
BOXES = tuple(
    replace(
        device(name, 30, SIZE, home=worker == LOCAL_WORKER, gbytes_per_s=speed, gbits_per_s=0.01),
        tier=PlannedTier(name, worker, "cpu", "ram", 30 * SIZE, worker=worker),
        overheads=Overheads(message_s=0.01, message_row_s=0.004) if name == LOCAL_WORKER else Overheads(),
    )
    for name, worker, speed in (
        ("head", "head", 0.01),
        ("study-ram", "head", 0.005),
        ("den-gpu", "den", 0.02),
        ("den-ram", "den", 0.008),
    )
)


def step_by_step(
    problem: PlanningProblem, table: HolderTable, trace: np.ndarray[Any, Any]
) -> tuple[list[float], list[int]]:
    """Seconds and remote layers of every step, one layer after another, box by box."""
    tiers = [device.tier for device in problem.devices]
    head = problem.devices[0].overheads
    message_s, message_row_s = head.message_s, head.message_row_s
    rates, costs, tokens = expert_rates(problem), replica_costs(problem), problem.workload.tokens_per_step
    seconds, remote_layers = [], []
    for start in range(0, len(trace) - tokens + 1, tokens):
        step_seconds, remote = 0.0, 0
        for row in range(SHAPE.num_moe_layers):
            ids = trace[start : start + tokens, row]
            chosen = assign_experts(ids, table.layers[row], costs)
            boxes = {}
            for worker in {tier.worker for tier in tiers}:
                members = [d for d, tier in enumerate(tiers) if tier.worker == worker and d]
                boxes[worker] = int(np.isin(chosen, members).any(axis=1).sum())
            rows = [boxes[tier.worker] if d else int((chosen == 0).any()) for d, tier in enumerate(tiers)]
            distinct = [len(set(ids[chosen == d].tolist())) for d in range(len(tiers))]
            pairs = [int((chosen == d).sum()) for d in range(len(tiers))]
            times = device_seconds(rates, np.array(rows), np.array(distinct), np.array(pairs))
            asked = {worker: n for worker, n in boxes.items() if worker != LOCAL_WORKER and n}
            step_seconds += message_s * len(asked) + message_row_s * sum(asked.values())
            step_seconds += float(times.max())
            remote += any(pairs[d] for d, found in enumerate(problem.devices) if not found.is_home)
        seconds.append(step_seconds)
        remote_layers.append(remote)
    return seconds, remote_layers


@given(
    seed=st.integers(0, 1000),
    drafts=st.integers(0, 3),
    replicas=st.booleans(),
    devices=st.sampled_from([DEVICES, BOXES]),
)
def test_arrays_equal_plain_python(
    seed: int, drafts: int, replicas: bool, devices: tuple[PlanningDevice, ...]
) -> None:
    generator = np.random.default_rng(seed)
    problem = PlanningProblem(SHAPE, devices, SIZE, workload=Workload(drafts=drafts))
    num_devices = len(devices)
    trace = np.argsort(generator.random((23, 3, 10)), axis=2)[:, :, :3].astype(np.uint16)
    masks = generator.random((num_devices, 3, 10)) < (0.5 if replicas else 0.0)
    masks[0] |= ~masks.any(axis=0)
    table = (
        HolderTable.from_masks(masks)
        if replicas
        else HolderTable.from_single(generator.integers(0, num_devices, (3, 10)))
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
