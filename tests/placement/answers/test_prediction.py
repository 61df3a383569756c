"""What a plan is said to do: as the simulator has it, above the bound, with memory and advice to match."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from placement.answers.advice import advice
from placement.answers.planner import as_plan, make_plan
from placement.answers.prediction import Prediction, by_context, predict
from placement.cost.head import head_seconds
from placement.errors import InputError, PlanDoesNotFit
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, NodeSpec
from placement.given.head_memory import head_memory_bytes
from placement.given.problem import PlanningProblem, problem_for
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, SyntheticRouter
from placement.holders import HolderTable
from placement.kv_size import PAGE_POSITIONS, PASS_ROWS, KvForm, SequenceSize
from placement.model_shape import STEP_3_5_FLASH
from placement.plan import Plan
from placement.policies.baselines.fixed import one_box, uniform, whole_layers
from placement.replay.evaluate import evaluate
from placement.replay.simulate import simulate_alone
from placement.replay.system import System
from placement.routing.planning_text import planning_text
from placement.units import compared, size
from placement.workload import HeadBytes, Workload
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=4, num_experts=32, top_k=4)
SIZE = SHAPE.expert_bytes(16)
READ_GBYTES_PER_S = SIZE / 1e-4 / 1e9
TRACE = SyntheticRouter(SHAPE).trace(CODING, 900)
STATS = RoutingStats.from_trace(SHAPE, TRACE, "synthetic")


def problem(round_trip_s: float = 1e-4, head: int = 64, workload: Workload | None = None) -> PlanningProblem:
    devices = (
        device("head", head, SIZE, gbytes_per_s=READ_GBYTES_PER_S),
        device("attic", 80, SIZE, gbytes_per_s=READ_GBYTES_PER_S, round_trip_s=round_trip_s),
    )
    return PlanningProblem(SHAPE, devices, SIZE, STATS, workload or Workload(context=100))


def plan_of(given: PlanningProblem, table: HolderTable) -> Plan:
    return as_plan(given, table, "a test", "bfloat16")


def predicted(given: PlanningProblem, plan: Plan) -> Prediction:
    return predict(given, plan, planning_text(given))


def said(given: PlanningProblem, table: HolderTable) -> list[str]:
    return advice(given, table, planning_text(given))


@pytest.mark.parametrize("workload", [Workload(), Workload(drafts=2, accepted_drafts=1.1, context=50)])
def test_the_prediction_is_what_the_simulator_says(workload: Workload) -> None:
    given = problem(workload=workload)
    plan = plan_of(given, uniform(given))
    found = predicted(given, plan)
    report = simulate_alone(System.build(plan, given.devices, SHAPE, workload), [TRACE])
    assert found.basis == "trace"
    assert found.step_time_s == pytest.approx(report.step_time_s.mean)
    assert found.tokens_per_s == pytest.approx((1 + workload.accepted_drafts) / report.step_time_s.mean)
    assert found.remote_layers_per_token == pytest.approx(report.remote_layers_per_token)
    assert found.head_s == pytest.approx(head_seconds(given).total_s)
    assert 0 < found.lower_bound_s <= found.step_time_s
    assert sum(found.bound_by.values()) == pytest.approx(1)
    assert sum(found.causes.values()) == pytest.approx(1)


def test_without_a_trace_the_basis_is_named() -> None:
    given = problem()
    plan = plan_of(given, uniform(given))
    assert predicted(replace(given, stats=STATS.without_trace()), plan).basis == "counts"
    assert predicted(replace(given, stats=None), plan).basis == "even routing"


def test_a_plan_of_the_planner_is_near_the_bound_and_a_bad_one_is_not() -> None:
    given = problem()
    made = make_plan(SHAPE, given.devices, STATS, dtype="q8", expert_bytes=SIZE, workload=given.workload)
    gap = predicted(given, made).gap
    assert gap < 0.1
    assert predicted(given, plan_of(given, whole_layers(given))).gap > gap + 0.1


@pytest.mark.parametrize("reserved_experts", [0, 20, 60])
def test_longer_contexts_are_slower_until_the_cache_does_not_fit(reserved_experts: int) -> None:
    """What is reserved for the head is the head's to use, and more where experts leave it."""
    workload = Workload(context=100)
    memory_bytes = head_memory_bytes(SHAPE, workload) + 200 * SIZE
    ram = DeviceSpec("ram", "ram", "cpu", memory_bytes, reserved_experts * SIZE, 6e10, 1e12)
    cluster = ClusterSpec("study", (NodeSpec("study", None, (ram,), None),))
    given = problem_for(SHAPE, cluster, SIZE, STATS, workload)
    plan = plan_of(given, one_box(given))
    held = int(plan.experts_per_tier()[0])
    longest = PAGE_POSITIONS
    while head_memory_bytes(SHAPE, Workload(context=longest + PAGE_POSITIONS)) <= memory_bytes - held * SIZE:
        longest += PAGE_POSITIONS
    assert all(not a.is_sliding or a.window <= 100 for a in SHAPE.attention)
    found = by_context(given, cluster, plan, predicted(given, plan), [0, 100, longest, longest + 2])
    speeds = [at.tokens_per_s for at in found]
    assert speeds[3] is None
    fitting = [speed for speed in speeds if speed is not None]
    assert len(fitting) == 3
    assert fitting == sorted(fitting, reverse=True)
    assert fitting[0] > fitting[2]
    assert speeds[1] == pytest.approx(predicted(given, plan).tokens_per_s)


def test_what_the_head_keeps_is_charged_before_experts() -> None:
    shape = STEP_3_5_FLASH
    workload = Workload(context=65536)
    needs = head_memory_bytes(shape, workload)
    weights = shape.trunk_head_parameters * 2
    cache = SequenceSize.of(shape, KvForm.bfloat16, 0).num_bytes(65536)
    assert needs == weights + cache + shape.activation_bytes(PASS_ROWS)
    with_drafts = head_memory_bytes(shape, replace(workload, drafts=1))
    one_ring = SequenceSize.of(shape, KvForm.bfloat16, 1).num_bytes(65536) - cache
    assert with_drafts - needs == 2 * (shape.head_parameters - shape.trunk_head_parameters) + one_ring
    known = replace(workload, head_bytes=HeadBytes(10**9, 10**8))
    assert head_memory_bytes(shape, known) - needs == 10**9 - weights
    size = shape.expert_bytes(4.5)

    def capacity(reserved_bytes: int, context: int) -> int:
        ram = DeviceSpec("ram", "ram", "cpu", 192 * 10**9, reserved_bytes, 6e10, 1e12)
        cluster = ClusterSpec("study", (NodeSpec("study", None, (ram,), None),))
        return int(problem_for(shape, cluster, size, workload=Workload(context=context)).capacities()[0])

    assert capacity(0, 65536) == (192 * 10**9 - needs) // size
    assert capacity(10**9, 65536) == capacity(0, 65536)
    assert capacity(60 * 10**9, 65536) == 132 * 10**9 // size
    assert capacity(0, 1024) > capacity(0, 65536)


def test_a_head_that_does_not_fit_is_told_by_how_much() -> None:
    gpu = DeviceSpec("gpu", "vram", "cuda", 12 * 10**9, 0, 9e11, 1e13)
    ram = DeviceSpec("ram", "ram", "cpu", 256 * 10**9, 0, 6e10, 1e12)
    cluster = ClusterSpec("study", (NodeSpec("study", None, (gpu, ram), None),))
    missing = size(head_memory_bytes(STEP_3_5_FLASH, Workload()) - 12 * 10**9)
    with pytest.raises(PlanDoesNotFit, match=f"node study, device gpu: .* {missing} more than"):
        problem_for(STEP_3_5_FLASH, cluster, STEP_3_5_FLASH.expert_bytes(4.5))


def test_a_head_without_a_device_cannot_be_timed() -> None:
    far = device("attic", 200, SIZE)
    given = PlanningProblem(SHAPE, (far,), SIZE, STATS)
    with pytest.raises(InputError, match="head's node has no device"):
        predicted(given, plan_of(given, uniform(given)))


def test_advice_names_a_box_that_is_left_out() -> None:
    given = problem(round_trip_s=0.1, head=SHAPE.num_routed_experts)
    sentences = said(given, one_box(given))
    assert any("attic is left out" in sentence for sentence in sentences)
    assert not any("left out" in s for s in said(given, uniform(given)))


def test_advice_names_whole_layers_and_one_box_alone() -> None:
    given = problem(round_trip_s=1e-3, head=SHAPE.num_routed_experts)
    masks = np.zeros((2, 4, 32), dtype=np.bool_)
    masks[0, :2] = masks[1, 2:] = True
    table = HolderTable.from_masks(masks)
    sentences = said(given, table)
    assert any("attic holds 2 whole layers" in sentence for sentence in sentences)
    alone = evaluate(given, one_box(given), TRACE).mean_s / evaluate(given, table, TRACE).mean_s
    assert alone < 0.9
    assert any(f"alone would be {compared(1 / alone)} in MoE layers" in sentence for sentence in sentences)


def test_advice_says_what_frequencies_are_worth() -> None:
    given = problem()
    made = make_plan(SHAPE, given.devices, STATS, dtype="bfloat16", expert_bytes=SIZE)
    assert "beside plans that ignore frequencies this one is" in said(given, made.holder_table)[-1]
    even = RoutingStats.from_trace(
        SHAPE,
        np.argsort(np.random.default_rng(0).random((900, 4, 32)), axis=2)[:, :, :4].astype(np.uint16),
        "even",
    )
    flat = replace(given, stats=even)
    assert "your routing has no hot set" in said(flat, uniform(flat))[-1]
    assert "potluck stats" in said(replace(given, stats=None), uniform(given))[-1]


def filled_twice(given: PlanningProblem) -> HolderTable:
    """Every expert on both boxes: faster steps, and every layer asks both."""
    return HolderTable.from_masks(np.ones((2, 4, 32), dtype=np.bool_))


def roomy(workload: Workload, round_trip_s: float = 1e-5) -> PlanningProblem:
    devices = (
        device("head", 128, SIZE, gbytes_per_s=READ_GBYTES_PER_S),
        device(
            "attic", 128, SIZE, gbytes_per_s=READ_GBYTES_PER_S, round_trip_s=round_trip_s, gbits_per_s=0.01
        ),
    )
    return PlanningProblem(SHAPE, devices, SIZE, STATS, workload)


def test_what_copies_gain_and_cost_is_the_difference_to_the_plan_without() -> None:
    given = roomy(Workload(context=100))
    found = predicted(given, plan_of(given, filled_twice(given)))
    alone = predicted(given, plan_of(given, one_box(given)))
    assert found.copies is not None
    assert found.copies.num_copies == 128
    assert found.copies.decode_gain == pytest.approx(found.tokens_per_s / alone.tokens_per_s - 1)
    assert found.copies.prompt_gain == pytest.approx(
        found.prefill_tokens_per_s / alone.prefill_tokens_per_s - 1
    )
    assert found.copies.decode_gain > 0.02
    assert found.copies.prompt_gain < -0.1
    assert alone.copies is None


def test_copies_that_cost_prompts_more_than_they_gain_are_not_made() -> None:
    for ratio in (0.0, 8.0):
        given = roomy(Workload(prompt_tokens_per_token=ratio))
        made = make_plan(
            SHAPE, given.devices, STATS, dtype="bfloat16", expert_bytes=SIZE, workload=given.workload
        )
        copies = predicted(given, made).copies
        if ratio:
            assert copies is None or copies.prompt_gain > -0.05
        else:
            assert copies is not None


def test_no_round_trips_are_saved_by_layers_that_both_boxes_hold() -> None:
    given = roomy(Workload())
    assert predicted(given, plan_of(given, filled_twice(given))).remote_layers_per_token > 3.5
    assert not any("round trips" in sentence for sentence in said(given, filled_twice(given)))


def test_a_box_that_a_policy_leaves_out_is_not_called_useless() -> None:
    """Read from two memories at once steps are faster; this policy does not try."""
    given = replace(roomy(Workload()), devices=problem(1e-6, 128).devices)
    sentence = next(s for s in said(given, one_box(given)) if "left out" in s)
    assert "leave the policy to the planner" in sentence
    best = make_plan(SHAPE, given.devices, STATS, dtype="bfloat16", expert_bytes=SIZE).holder_table
    assert evaluate(given, best, TRACE).mean_s < 0.98 * evaluate(given, one_box(given), TRACE).mean_s


def test_one_box_alone_is_compared_by_steps_and_prompts_as_the_plan_weighs_them() -> None:
    given = roomy(Workload())
    sentence = next(s for s in said(given, filled_twice(given)) if "alone" in s)
    ours = predicted(given, plan_of(given, filled_twice(given)))
    alone = predicted(given, plan_of(given, one_box(given)))
    prompts = ours.prefill_tokens_per_s / alone.prefill_tokens_per_s
    assert prompts < 0.9
    assert f"{prompts:.2f} times as long for prompts" in sentence
    weighed = replace(given, workload=Workload(prompt_tokens_per_token=8.0))
    sentence = next(s for s in said(weighed, filled_twice(weighed)) if "alone" in s)
    assert "times as fast in MoE layers and prompts together" in sentence


def test_a_head_without_a_device_is_planned_for_with_prompts() -> None:
    far = tuple(device(name, 100, SIZE) for name in ("attic", "den"))
    given = PlanningProblem(SHAPE, far, SIZE, STATS, Workload(prompt_tokens_per_token=8.0))
    made = make_plan(SHAPE, far, STATS, dtype="bfloat16", expert_bytes=SIZE, workload=given.workload)
    assert said(given, made.holder_table)


def test_advice_says_nothing_of_one_box_where_the_plan_is_that_box() -> None:
    given = problem(head=SHAPE.num_routed_experts)
    assert not any("alone" in sentence for sentence in said(given, one_box(given)))


def test_a_plan_slower_than_one_that_ignores_frequencies_is_said_to_be() -> None:
    given = problem(round_trip_s=5e-3, head=100)
    slow = HolderTable.from_masks(np.stack([uniform(given).mask(1), uniform(given).mask(0)]))
    assert any("times as long as one that ignores frequencies" in sentence for sentence in said(given, slow))
