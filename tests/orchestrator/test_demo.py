"""What the demo says of its plan can be held against what its run counts."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.cli.demo import remote_layers_per_step
from placement.answers.planner import as_plan
from placement.given.problem import problem_for
from placement.given.stats import RoutingStats
from placement.plan import LOCAL_WORKER
from placement.policies.registry import find_policy
from placement.routing import expectation
from placement.workload import Workload
from tests.orchestrator.command_line import Potluck, says
from tests.placement.boxes import device
from tests.placement.shapes import small_shape


def test_more_drafts_than_the_model_has_are_refused_before_anything_starts(potluck: Potluck) -> None:
    code, out, err = potluck("demo", "--mtp", 4)
    assert (code, out) == (2, "")
    assert says(err, "--mtp 4: 4 drafts … 3 MTP layers"), err


@pytest.mark.parametrize("drafts", [0, 3])
def test_the_expected_remote_layers_are_those_of_a_whole_step(drafts: int) -> None:
    shape = small_shape()
    rng = np.random.default_rng(1)
    size = (1600, shape.num_moe_layers, shape.num_experts)
    trace = np.argsort(rng.random(size), axis=2)[:, :, : shape.top_k].astype(np.uint16)
    stats = RoutingStats.from_trace(shape, trace, "drawn")
    devices = [device(LOCAL_WORKER, 24, 100), device("den", 6, 100)]
    problem = problem_for(shape, devices, 100, stats, Workload(drafts=drafts))
    plan = as_plan(problem, find_policy("uniform")(problem), "uniform", "float32")
    expected = expectation.remote_layers_per_step(
        plan.holder_table, stats, plan.tiers_at_home(), tokens_per_step=1 + drafts
    )
    assert 0 < expected < shape.num_moe_layers
    assert remote_layers_per_step(problem, plan) == pytest.approx(expected)
