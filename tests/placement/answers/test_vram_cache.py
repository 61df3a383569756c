"""VRAM as a cache on one text: half of it counted, the other half judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from placement.answers.vram_cache import vram_cache
from placement.errors import InputError
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats
from placement.policies.vram_residency import choose_residency, simulate_residency
from placement.residency import ResidencyRule
from placement.workload import Workload
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=10, top_k=3)
SIZE = SHAPE.expert_bytes(16)
GPU = replace(device("head", 8, SIZE, tier="vram", gbytes_per_s=0.05), host_link_bytes_per_s=3e6)
RAM = device("study-ram", 30, SIZE, home=True, gbytes_per_s=0.005)
PROBLEM = PlanningProblem(SHAPE, (GPU, RAM), SIZE, workload=Workload(drafts=1))


def text_of(num_tokens: int, taste: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    popularity = np.random.default_rng(taste).exponential(size=(3, 10)) ** 3
    clocks = np.random.default_rng(0).exponential(size=(num_tokens, 3, 10)) / popularity
    return np.argsort(clocks, axis=2)[:, :, :3].astype(np.uint16)


def test_a_text_that_stays_the_same_keeps_its_experts_and_one_that_changes_gets_a_cache() -> None:
    steady, turning = text_of(600, 1), np.concatenate([text_of(300, 1), text_of(300, 2)])
    assert vram_cache(PROBLEM, steady).chosen is ResidencyRule.fixed
    found = vram_cache(PROBLEM, turning)
    assert found.chosen is not ResidencyRule.fixed
    assert [result.rule for result in found.results] == list(ResidencyRule)


def test_what_is_judged_is_the_second_half_by_the_counts_of_the_first() -> None:
    trace = text_of(101, 3)
    stats = RoutingStats.from_trace(SHAPE, trace[:50], "first half")
    expected = simulate_residency(replace(PROBLEM, stats=stats), trace[50:])
    found = vram_cache(PROBLEM, trace)
    assert [result.moe_s_per_token for result in found.results] == [r.moe_s_per_token for r in expected]
    assert found.chosen == choose_residency(expected)


def test_a_text_without_a_step_in_each_half_is_refused() -> None:
    with pytest.raises(InputError, match="expected a text of 4 tokens or more, a step in each half, found 3"):
        vram_cache(PROBLEM, text_of(3, 0))
