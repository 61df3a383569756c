"""VRAM as a cache whose misses are computed in RAM, against the same thing written step by step."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.cost.head import head_seconds
from placement.cost.rates import expert_rates
from placement.errors import InputError, PlanDoesNotFit
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats
from placement.policies.baselines.cached_experts import homes_beside
from placement.policies.baselines.caches import opt_hits
from placement.policies.baselines.fixed import hottest_first
from placement.policies.registry import RUN_POLICIES
from placement.policies.vram_residency import ResidencyResult, choose_residency, simulate_residency
from placement.replay.evaluate import evaluate
from placement.residency import Residency, ResidencyRule
from placement.routing.text import Text
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=10, top_k=3)
SIZE = SHAPE.expert_bytes(16)
RAM = device("study-ram", 30, SIZE, home=True, gbytes_per_s=0.005)


def gpu(room: int = 8, link_gbytes_per_s: float = 0.003) -> Any:
    fast = device("head", room, SIZE, tier="vram", gbytes_per_s=0.05)
    return replace(fast, host_link_bytes_per_s=link_gbytes_per_s * 1e9)


def trace_of(seed: int, num_tokens: int, taste: int = 99) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Skewed by `taste`, so that caches have something to keep."""
    generator = np.random.default_rng(seed)
    popularity = np.random.default_rng(taste).exponential(size=(3, 10)) ** 2
    clocks = generator.exponential(size=(num_tokens, 3, 10)) / popularity
    return np.argsort(clocks, axis=2)[:, :, :3].astype(np.uint16)


def problem_of(*devices: Any, workload: Workload | None = None, stats: bool = True) -> PlanningProblem:
    known = RoutingStats.from_trace(SHAPE, trace_of(1, 200), "test") if stats else None
    return PlanningProblem(SHAPE, tuple(devices), SIZE, known, workload or Workload())


def by_rule(problem: PlanningProblem, trace: Any, **given_: Any) -> dict[ResidencyRule, ResidencyResult]:
    return {result.rule: result for result in simulate_residency(problem, trace, **given_)}


@given(seed=st.integers(0, 100), drafts=st.integers(0, 2), link=st.sampled_from([1e-5, 1e-3, 0.003, 0.1]))
@examples(30)
def test_a_step_takes_what_vram_and_ram_take_at_once_and_the_link_brings_experts_beside(
    seed: int, drafts: int, link: float
) -> None:
    """Layer by layer, byte by byte: the state machine driven here as a run would drive it."""
    problem = problem_of(gpu(link_gbytes_per_s=link), RAM, workload=Workload(drafts=drafts))
    trace, tokens = trace_of(seed, 40), 1 + drafts
    num_steps = len(trace) // tokens
    rates = expert_rates(problem)
    stats = problem.stats
    assert stats is not None
    first = np.argsort(-stats.counts.ravel().astype(np.int64), kind="stable")[:8].tolist()
    fixed = homes_beside(problem, 0).table.copy()
    fixed.flat[first] = 0
    step_s = evaluate(problem, hottest_first(problem), trace).mean_s + head_seconds(problem).total_s
    bytes_per_step = step_s * min(link * 1e9, 5e6)
    chances = 1 - (1 - stats.frequencies().ravel()) ** tokens
    for rule in ResidencyRule:
        residency = Residency(rule, 8, 3, 10, first=first, frequencies=chances)
        queue: deque[list[float]] = deque()  # expert, bytes that are still to come
        hits = wanted = copied_bytes = 0.0
        seconds = []
        for start in range(0, num_steps * tokens, tokens):
            left = bytes_per_step
            arrived = []
            moved = 0.0
            while queue and left > 1e-6:
                part = min(left, queue[0][1])
                queue[0][1] -= part
                left, moved = left - part, moved + part
                if queue[0][1] < 1e-6:
                    arrived.append(int(queue.popleft()[0]))
            ram_rate = max(5e6 - moved / step_s, 2.5e6)
            moe_s = 0.0
            for row in range(3):
                ids = trace[start : start + tokens, row]
                found = residency.note(row, ids)
                missed, held = set(ids[~found].tolist()), set(ids[found].tolist())
                hits, wanted = hits + len(held), wanted + len(held | missed)
                gpu_s = rates.busy_s[0] + max(len(held) * rates.read_s[0], found.sum() * rates.compute_s[0])
                ram_s = max(len(missed) * SIZE / ram_rate, (~found).sum() * rates.compute_s[1])
                moe_s += max(gpu_s, ram_s)
            seconds.append(moe_s)
            copied_bytes += moved
            for expert in arrived:
                residency.loaded(expert)
            waiting = sum(left_bytes for _, left_bytes in queue)
            # Copies that begin while the next step's bytes come.
            begins = 0
            while waiting + begins * SIZE < bytes_per_step - 1e-6:
                begins += 1
            queue.extend([float(swap.load), float(SIZE)] for swap in residency.end_step(begins))
            assert residency.held.sum() + len(residency.loading) <= 8
        result = by_rule(problem, trace, rules=[rule])[rule]
        assert result.hit_share == pytest.approx(hits / wanted)
        assert result.evaluation.moe_seconds == pytest.approx(seconds)
        assert result.copied_bytes == pytest.approx(copied_bytes, abs=1)
        assert result.moe_s_per_token == pytest.approx(np.mean(seconds) / tokens)
        assert result.num_steps == num_steps


@given(seed=st.integers(0, 100), drafts=st.integers(0, 2))
@examples(20)
def test_fixed_experts_are_the_plan_that_puts_the_hottest_first(seed: int, drafts: int) -> None:
    problem = problem_of(gpu(), RAM, workload=Workload(drafts=drafts))
    trace = trace_of(seed, 40)
    result = by_rule(problem, trace)[ResidencyRule.fixed]
    planned = evaluate(problem, hottest_first(problem), trace)
    assert result.evaluation.moe_seconds == pytest.approx(planned.moe_seconds)
    assert result.copied_bytes == 0


@given(seed=st.integers(0, 100), room=st.integers(0, 30), link=st.sampled_from([1e-4, 0.003, 1.0]))
@examples(20)
def test_opt_step_by_step_bounds_the_hits_of_every_rule(seed: int, room: int, link: float) -> None:
    problem = problem_of(gpu(room, link), RAM, workload=Workload(drafts=1))
    trace = trace_of(seed, 60)
    steps = trace.reshape(30, 2, 3, 3) + np.arange(3)[:, None] * 10
    requests = np.full((30, 18), -1)
    for number, step in enumerate(steps):
        asked = np.unique(step)
        requests[number, : len(asked)] = asked
    most = opt_hits(requests, room).sum() / (requests >= 0).sum()
    assert all(result.hit_share <= most + 1e-12 for result in simulate_residency(problem, trace))


def test_where_the_text_differs_from_the_statistics_a_cache_learns_it_and_fixed_experts_do_not() -> None:
    problem = problem_of(gpu(), RAM)
    strange = by_rule(problem, trace_of(2, 400, taste=7))
    usual = by_rule(problem, trace_of(2, 400))
    assert strange[ResidencyRule.lfu].hit_share > strange[ResidencyRule.fixed].hit_share + 0.1
    assert choose_residency(list(strange.values())) is ResidencyRule.lfu
    # Moving experts costs the RAM bandwidth that its processor needs.
    assert choose_residency(list(usual.values())) is ResidencyRule.fixed


def test_without_a_link_worth_the_name_every_rule_is_as_fixed_experts() -> None:
    results = by_rule(problem_of(gpu(link_gbytes_per_s=1e-9), RAM), trace_of(3, 60))
    of_fixed = results[ResidencyRule.fixed]
    for rule in (ResidencyRule.lru, ResidencyRule.lfu):
        # One copy was begun and never ends: one place is lost.
        assert of_fixed.hit_share - 0.2 < results[rule].hit_share <= of_fixed.hit_share
        assert results[rule].copied_bytes < SIZE


def test_ties_and_small_gains_go_to_fixed_experts() -> None:
    def result(rule: ResidencyRule, moe_s: float) -> ResidencyResult:
        found = simulate_residency(problem_of(gpu(), RAM), trace_of(5, 2), [rule])[0]
        return replace(found, moe_s_per_token=moe_s)

    for lfu_s, chosen in ((1.0, "fixed"), (0.98, "fixed"), (0.96, "lfu"), (2.0, "fixed")):
        results = [result(ResidencyRule.lfu, lfu_s), result(ResidencyRule.fixed, 1.0)]
        assert choose_residency(results) == chosen


def test_experts_of_other_boxes_are_computed_there_and_never_loaded() -> None:
    ram = device("study-ram", 20, SIZE, home=True, gbytes_per_s=0.005)
    attic = device("attic", 12, SIZE, gbytes_per_s=0.001, gbits_per_s=0.1)
    problem = problem_of(gpu(), ram, attic)
    results = by_rule(problem, trace_of(4, 60))
    plan = evaluate(problem, homes_beside(problem, 0), trace_of(4, 60))
    assert plan.remote_layers.sum() > 0
    for result in results.values():
        assert result.evaluation.remote_layers.tolist() == plan.remote_layers.tolist()


def test_the_policies_are_the_rules() -> None:
    problem, trace = problem_of(gpu(), RAM), trace_of(6, 50)
    for rule in ("lru", "lfu"):
        policy = RUN_POLICIES[f"background-{rule}"](problem, Text(trace))
        assert policy.hit_share == by_rule(problem, trace)[ResidencyRule(rule)].hit_share


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ((device("head", 30, SIZE), RAM), "it is no VRAM"),
        ((gpu(), device("attic", 30, SIZE)), "has no RAM with experts to cache"),
        ((gpu(), replace(RAM, tier=replace(RAM.tier, budget_bytes=29 * SIZE))), "B are missing"),
    ],
)
def test_a_box_without_vram_or_ram_has_no_cache(devices: Any, message: str) -> None:
    with pytest.raises(PlanDoesNotFit, match=f"a cache on 'head'.*{message}"):
        simulate_residency(problem_of(*devices), trace_of(0, 10))


def test_too_little_text_is_refused() -> None:
    problem = problem_of(gpu(), RAM, workload=Workload(drafts=2))
    with pytest.raises(InputError, match="expected a text of 3 tokens or more, found 2"):
        simulate_residency(problem, trace_of(0, 2))
