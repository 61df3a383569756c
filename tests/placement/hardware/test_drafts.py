"""How many MTP drafts the planner finds best on hardware of the catalogue, with published acceptance.

llama.cpp pull request 20981 has 35.4, 45.6, 42.7 and 40.0 tokens/s with no draft to three: one is best
there. By the bytes that a step reads, two or three would be.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.published.acceptance import ACCEPTANCE
from placement.cost.head import head_seconds
from placement.given.cluster_file import cluster_of
from placement.given.cluster_spec import NO_OVERHEADS, DeviceSpec
from placement.given.kernel_rates import NO_ROW_COSTS
from placement.given.problem import problem_for
from placement.model_shape import STEP_3_5_FLASH
from placement.policies.registry import POLICIES
from placement.replay.evaluate import evaluate
from placement.replay.steps import Acceptance
from placement.routing.planning_text import spread_steps
from placement.workload import usual_workload

EVEN_TEXT = np.argsort(np.random.default_rng(0).random((160, 42, 288)), axis=-1)[:, :, :8].astype(np.uint16)
"""[num_tokens, num_moe_layers, top_k]: what plans are made for where nobody has statistics."""
HARDWARE: dict[str, list[Any]] = {
    "Mac Studio": [{"use": "m4-max", "memory_bytes": "128GB"}],
    "GPU and RAM": ["rtx-4090", {"use": "ddr5-6000-dual", "memory_bytes": "192GB"}],
    "RAM": [{"use": "ddr5-6000-dual", "memory_bytes": "192GB"}],
}


def by_bytes(device: DeviceSpec) -> DeviceSpec:
    """As if rows cost nothing beside the bytes that they need."""
    return replace(device, row_costs=NO_ROW_COSTS, overheads=NO_OVERHEADS)


def tokens_per_s(hardware: list[Any], drafts: int, *, bytes_alone: bool) -> float:
    """Of the plan that has whole layers in each device, even routing."""
    document: dict[object, object] = {"head": "box", "nodes": [{"name": "box", "hardware": hardware}]}
    cluster = cluster_of(document, Path("boxes.yaml"))
    if bytes_alone:
        (node,) = cluster.nodes
        cluster = replace(cluster, nodes=(replace(node, devices=tuple(map(by_bytes, node.devices))),))
    chances = ACCEPTANCE[:drafts]
    workload = replace(
        usual_workload("q4"),
        drafts=drafts,
        acceptance=chances,
        accepted_drafts=Acceptance(chances).mean_accepted if chances else 0.0,
    )
    expert_bytes = STEP_3_5_FLASH.expert_bytes(4.5)
    problem = problem_for(STEP_3_5_FLASH, cluster, expert_bytes, workload=workload, expert_form="q4_k")
    table = POLICIES["whole-layers"](problem)
    steps = spread_steps(EVEN_TEXT, workload.tokens_per_step, 40)
    step_s = head_seconds(problem).total_s + evaluate(problem, table, steps).mean_s
    return workload.tokens_out_per_step / step_s


def best_of(hardware: list[Any], *, bytes_alone: bool = False) -> int:
    speeds = [tokens_per_s(hardware, drafts, bytes_alone=bytes_alone) for drafts in range(4)]
    return speeds.index(max(speeds))


@pytest.mark.parametrize("name", HARDWARE)
def test_one_draft_is_best_where_others_measured_one_as_best(name: str) -> None:
    assert best_of(HARDWARE[name]) == 1


def test_bytes_alone_promise_more_drafts() -> None:
    assert best_of(HARDWARE["Mac Studio"], bytes_alone=True) > 1
    assert best_of(HARDWARE["RAM"], bytes_alone=True) > 1
