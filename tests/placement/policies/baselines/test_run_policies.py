"""Policies that are run on text, against the same thing written step by step."""

from __future__ import annotations

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
from placement.holders import HolderTable
from placement.model_shape import STEP_3_5_FLASH
from placement.policies.baselines.cached_experts import fetch_seconds, homes_beside
from placement.policies.baselines.fixed import hottest_first
from placement.policies.registry import POLICIES, RUN_POLICIES, find_policy
from placement.replay.evaluate import evaluate
from placement.routing.text import Text
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=10, top_k=3)
SIZE = SHAPE.expert_bytes(16)
GPU = device("head", 8, SIZE, tier="vram", gbytes_per_s=0.05)
RAM = device("study-ram", 30, SIZE, home=True, gbytes_per_s=0.005)


def trace_of(seed: int, num_tokens: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Skewed, so that caches have something to keep."""
    generator = np.random.default_rng(seed)
    popularity = np.random.default_rng(99).exponential(size=(3, 10)) ** 2
    clocks = generator.exponential(size=(num_tokens, 3, 10)) / popularity
    return np.argsort(clocks, axis=2)[:, :, :3].astype(np.uint16)


def problem_of(*devices: Any, workload: Workload | None = None, stats: bool = True) -> PlanningProblem:
    known = RoutingStats.from_trace(SHAPE, trace_of(1, 200), "test") if stats else None
    return PlanningProblem(SHAPE, tuple(devices), SIZE, known, workload or Workload())


@pytest.mark.parametrize("name", RUN_POLICIES)
def test_a_policy_that_is_run_makes_no_plan(name: str) -> None:
    assert name not in POLICIES
    with pytest.raises(InputError, match=f"policy '{name}' makes no plan"):
        find_policy(name)


@pytest.mark.parametrize("name", RUN_POLICIES)
@pytest.mark.parametrize("stats", [True, False])
def test_the_same_text_takes_the_same_time(name: str, stats: bool) -> None:
    problem = problem_of(GPU, device("study-ram", 60, SIZE, home=True, gbytes_per_s=0.005), stats=stats)
    first, again = (RUN_POLICIES[name](problem, Text(trace_of(2, 64), 16)) for _ in range(2))
    assert np.array_equal(first.moe_seconds, again.moe_seconds)
    assert first.moe_seconds.min() > 0
    assert first.bound_share.sum() == pytest.approx(1)


@given(seed=st.integers(0, 100), drafts=st.integers(0, 2))
@examples(20)
def test_a_cache_takes_what_its_misses_take(seed: int, drafts: int) -> None:
    """Layer by layer: the GPU's work, or the last fetched expert's arrival and its work."""
    problem = problem_of(GPU, RAM, workload=Workload(drafts=drafts))
    trace, tokens = trace_of(seed, 30), 1 + drafts
    rates = expert_rates(problem)
    heat = problem.stats.counts.ravel() if problem.stats else np.zeros(0)
    cache = list(np.argsort(-heat.astype(np.int64), kind="stable")[:8])  # most recent in front
    hits = wanted = 0
    seconds = []
    for start in range(0, len(trace) - tokens + 1, tokens):
        step_s = 0.0
        for row in range(3):
            ids = trace[start : start + tokens, row]
            asked = [row * 10 + e for e in sorted(set(ids.ravel().tolist()))]
            missing = [e for e in asked if e not in cache]
            hits += len(asked) - len(missing)
            wanted += len(asked)
            cache = (asked[::-1] + [e for e in cache if e not in asked])[:8]
            work_s = max(len(asked) * rates.read_s[0], ids.size * rates.compute_s[0]) + rates.busy_s[0]
            fetch_s = len(missing) * SIZE / 5e6 + rates.read_s[0] if missing else 0.0
            step_s += max(work_s, fetch_s)
        seconds.append(step_s)
    found = RUN_POLICIES["lru"](problem, Text(trace))
    assert found.hit_share == pytest.approx(hits / wanted)
    assert found.moe_seconds == pytest.approx(seconds)
    assert not found.remote_layers.any()


@given(seed=st.integers(0, 100), drafts=st.integers(0, 2))
@examples(20)
def test_opt_bounds_the_others_hits(seed: int, drafts: int) -> None:
    problem = problem_of(GPU, RAM, workload=Workload(drafts=drafts))
    text = Text(trace_of(seed, 60))
    share = {name: RUN_POLICIES[name](problem, text).hit_share for name in ("lru", "lfu", "opt")}
    assert max(share["lru"] or 0, share["lfu"] or 0) <= (share["opt"] or 0) + 1e-12


def test_a_cache_with_room_for_all_is_as_fast_as_holding_all() -> None:
    problem = problem_of(device("head", 30, SIZE, tier="vram", gbytes_per_s=0.05), RAM)
    text = Text(trace_of(3, 40))
    everything = HolderTable.from_single(np.zeros((3, 10)))
    for name in ("lru", "lfu", "opt", "prompt-hottest"):
        found = RUN_POLICIES[name](problem, replace(text, document_tokens=20))
        assert found.hit_share == 1
        if name != "prompt-hottest":
            assert found.moe_seconds == pytest.approx(evaluate(problem, everything, text.trace).moe_seconds)


def test_a_fetch_takes_the_slowest_of_memory_link_and_host_link() -> None:
    slow_link = replace(RAM, link_bytes_per_s=2e6)
    assert fetch_seconds(problem_of(GPU, RAM), 0)[1] == pytest.approx(SIZE / 5e6)
    assert fetch_seconds(problem_of(GPU, slow_link), 0)[1] == pytest.approx(SIZE / 2e6)
    with_host_link = replace(GPU, host_link_bytes_per_s=1e6)
    assert fetch_seconds(problem_of(with_host_link, slow_link), 0)[1] == pytest.approx(SIZE / 1e6)


def test_what_is_on_another_box_is_computed_there() -> None:
    """A cache without room changes nothing there: the times are those of a plan without it."""
    none = device("head", 0, SIZE, tier="vram", gbytes_per_s=0.05)
    ram = device("study-ram", 20, SIZE, home=True, gbytes_per_s=0.005)
    attic = device("attic", 12, SIZE, gbytes_per_s=0.001, gbits_per_s=0.1)
    problem, text = problem_of(none, ram, attic), Text(trace_of(4, 40))
    found = RUN_POLICIES["lru"](problem, text)
    plan = evaluate(problem, homes_beside(problem, 0), text.trace)
    assert found.hit_share == 0
    assert found.remote_layers.tolist() == plan.remote_layers.tolist()
    at_attic = plan.remote_layers > 0
    assert at_attic.any()
    with_cache = RUN_POLICIES["lru"](problem_of(GPU, ram, attic), text)
    assert 0 < (with_cache.hit_share or 0) < 1
    assert with_cache.remote_layers.tolist() == plan.remote_layers.tolist()
    assert with_cache.mean_s < found.mean_s


def test_a_box_with_one_memory_has_nothing_to_cache() -> None:
    with pytest.raises(PlanDoesNotFit, match="no other memory to cache"):
        RUN_POLICIES["lru"](problem_of(GPU, device("attic", 30, SIZE)), Text(trace_of(4, 40)))


def test_experts_without_a_home_beside_the_cache_do_not_fit() -> None:
    problem = problem_of(GPU, device("study-ram", 29, SIZE, home=True, gbytes_per_s=0.005))
    for name in ("lru", "prompt-hottest"):
        with pytest.raises(PlanDoesNotFit, match=r"a cache on 'head'.*B are missing"):
            RUN_POLICIES[name](problem, Text(trace_of(0, 40), 20))


@given(seed=st.integers(0, 100))
@examples(20)
def test_the_prompts_hottest_experts_serve_its_answer(seed: int) -> None:
    problem = problem_of(GPU, RAM)
    trace = trace_of(seed, 47)
    homes = homes_beside(problem, 0).table[:, :, 0]
    stats = problem.stats
    assert stats is not None
    seconds: list[float] = []
    for start in (0, 20, 40):  # the last document is cut off
        document = trace[start : start + 20]
        prompt, answer = np.split(document, [len(document) // 2])
        counts = np.zeros((3, 10), dtype=np.int64)
        for row in range(3):
            np.add.at(counts[row], prompt[:, row].ravel(), 1)
        ranked = sorted(np.ndindex(3, 10), key=lambda c: (-counts[c], -int(stats.counts[c]), c))
        table = homes.copy()
        for cell in ranked[:8]:
            table[cell] = 0
        seconds += evaluate(problem, HolderTable.from_single(table), answer).moe_seconds.tolist()
    found = RUN_POLICIES["prompt-hottest"](problem, Text(trace, 20))
    assert found.moe_seconds == pytest.approx(seconds)


def test_a_text_without_an_answer_is_refused() -> None:
    problem = problem_of(GPU, RAM, workload=Workload(drafts=3))
    with pytest.raises(InputError, match="expected documents with a prompt and a step of 4 tokens, found 3"):
        RUN_POLICIES["prompt-hottest"](problem, Text(trace_of(0, 3)))


# The pipeline. SHAPE has a dense layer in front of its MoE layers.


def test_one_box_alone_is_a_pipeline_without_hops() -> None:
    head = device("head", 60, SIZE, gbytes_per_s=0.05)
    problem = problem_of(head)
    text = Text(trace_of(5, 20))
    found = RUN_POLICIES["pipeline"](problem, text)
    alone = evaluate(problem, hottest_first(problem), text.trace)
    assert found.moe_seconds == pytest.approx(alone.moe_seconds)
    assert found.head_s == pytest.approx(head_seconds(problem).total_s)


def test_boxes_work_in_turn_and_pass_hidden_states_on() -> None:
    head = device("head", 40, SIZE, gbytes_per_s=0.05)
    attic = device("attic", 42, SIZE, gbytes_per_s=0.05, round_trip_s=0.5, gbits_per_s=1)
    den = device("den", 42, SIZE, gbytes_per_s=0.05, round_trip_s=0.3, gbits_per_s=0.5)
    text = Text(trace_of(5, 20))
    found = RUN_POLICIES["pipeline"](problem_of(head, attic, den), text)
    alone = RUN_POLICIES["pipeline"](problem_of(device("head", 80, SIZE, gbytes_per_s=0.05)), text)
    # head -> attic -> den -> head: half of the longer round trip each, at the slower link.
    row_bytes = SHAPE.hidden_size * 2
    hops_s = (0.5 + 0.5 + 0.3) / 2 + row_bytes * (1 / 1e9 + 2 / 0.5e9) * 8
    assert found.moe_seconds - hops_s == pytest.approx(alone.moe_seconds)
    assert found.head_s == pytest.approx(alone.head_s)
    assert found.bound_share.tolist()[0] > 0
    assert 0 < found.remote_layers[0] < 3


def test_attention_takes_the_time_of_the_box_it_is_on() -> None:
    """All but the head's speed is the same: layers on a box half as fast take twice as long."""
    slow = RUN_POLICIES["pipeline"](
        problem_of(device("head", 80, SIZE, gbytes_per_s=0.025)), Text(trace_of(5, 20))
    )
    fast = RUN_POLICIES["pipeline"](
        problem_of(device("head", 80, SIZE, gbytes_per_s=0.05)), Text(trace_of(5, 20))
    )
    assert slow.moe_seconds == pytest.approx(2 * fast.moe_seconds)
    assert slow.head_s == pytest.approx(2 * (fast.head_s or 0))


def test_layers_go_by_memory_and_disks_get_the_rest() -> None:
    disk = device("study-disk", 400, SIZE, tier="disk", home=True, gbytes_per_s=0.001)
    problem = problem_of(device("head", 25, SIZE, gbytes_per_s=0.05), disk)
    found = RUN_POLICIES["pipeline"](problem, Text(trace_of(5, 20)))
    assert found.bound_share.tolist() == pytest.approx([2 / 3, 1 / 3])
    problem = problem_of(device("head", 35, SIZE, gbytes_per_s=0.05), disk)
    found = RUN_POLICIES["pipeline"](problem, Text(trace_of(5, 20)))
    assert found.bound_share.tolist() == [1, 0]


def test_too_few_whole_layers_do_not_fit() -> None:
    problem = problem_of(device("head", 19, SIZE), device("attic", 19, SIZE))
    with pytest.raises(PlanDoesNotFit, match="pipeline: the devices have room for 1 whole MoE layers of 3"):
        RUN_POLICIES["pipeline"](problem, Text(trace_of(5, 20)))


def test_attention_and_kv_cache_take_room_on_other_boxes() -> None:
    size = STEP_3_5_FLASH.expert_bytes(4.5)
    boxes = tuple(device(name, 13 * 288, size, gbits_per_s=10) for name in ("head", "attic", "den", "loft"))
    long = PlanningProblem(STEP_3_5_FLASH, boxes, size, workload=Workload(context=10**8))
    trace = np.tile(np.arange(8, dtype=np.uint16), (1, 42, 1))
    with pytest.raises(PlanDoesNotFit, match="pipeline"):
        RUN_POLICIES["pipeline"](long, Text(trace))
    RUN_POLICIES["pipeline"](replace(long, workload=Workload()), Text(trace))
