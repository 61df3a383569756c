"""Prefill: the mean form, experts streamed into the GPU, and recorded passes replayed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.cost.prefill import prefill_layer_seconds, prefill_rates, prefill_seconds, streamed_seconds
from placement.cost.rates import expert_rates
from placement.given.problem import PlanningProblem
from placement.model_shape import STEP_3_5_FLASH
from placement.replay.recorded_run import replay_decode, replay_prefill
from placement.replay.simulate import simulate_alone
from placement.streaming import ExpertSeconds, StreamingRates, choose_streamed
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.runs import random_plan, random_trace, system_of

SIZE = STEP_3_5_FLASH.expert_bytes(4.5)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("num_lenders", [1, 2, 3])
def test_the_balance_is_the_best_of_all_splits(seed: int, num_lenders: int) -> None:
    """Brute force over shares in steps of a twentieth; its best is at most one step of one lender above."""
    generator = np.random.default_rng(seed)
    own = float(generator.random())
    fixed, there, copy, here = generator.random((4, num_lenders)) * [[0.1], [3.0], [2.0], [0.5]]
    steps = 40 if num_lenders < 3 else 20
    x = np.array(list(itertools.product(range(steps + 1), repeat=num_lenders))) / steps
    parts = np.stack([own + (x * here).sum(axis=1), (x * copy).sum(axis=1), *(fixed + (1 - x) * there).T])
    best = float(parts.max(axis=0).min())
    found = float(streamed_seconds(np.array(own), fixed, there, copy, here))
    assert found <= best + 1e-9
    assert best <= found + float((there + copy + here).max() * num_lenders / steps)


def test_a_prompts_rows_cross_the_wire_once_for_a_box_of_two_devices() -> None:
    """Apart, each device gets a row for each of its pairs; the box gets the rows of both, at most all."""
    devices = (
        device("head", 12_000, SIZE, gflops=1e6),
        device("den-gpu", 100, SIZE, gflops=1e6),
        device("den-ram", 100, SIZE, gflops=1e6),
    )
    head, *den = devices
    box = tuple(replace(d, tier=replace(d.tier, node="den", worker="den")) for d in den)
    share, held = np.tile([0.9, 0.05, 0.05], (42, 1)), np.tile([268, 10, 10], (42, 1))
    apart, together = (
        prefill_seconds(PlanningProblem(STEP_3_5_FLASH, d, SIZE), share, held, 1000)
        for d in (devices, (head, *box))
    )
    row_s = float(expert_rates(PlanningProblem(STEP_3_5_FLASH, devices, SIZE)).row_wire_s[1])
    # 1,000 tokens of top-8: 400 pairs on each device, 800 rows to the box.
    assert together - apart == pytest.approx(42 * 400 * row_s)


def gpu_box(host_link_bytes_per_s: float | None, ram_gflops: float = 700) -> PlanningProblem:
    gpu = replace(
        device("head", 1500, SIZE, tier="vram", gbytes_per_s=900, gflops=60_000),
        host_link_bytes_per_s=host_link_bytes_per_s,
    )
    ram = device("home-ram", 12_000, SIZE, home=True, gbytes_per_s=60, gflops=ram_gflops)
    return PlanningProblem(STEP_3_5_FLASH, (gpu, ram), SIZE)


def test_streaming_over_pcie_beats_computing_many_rows_on_the_cpu_and_a_slow_bus_changes_nothing() -> None:
    share, held = np.tile([0.2, 0.8], (42, 1)), np.tile([58, 230], (42, 1))
    without = prefill_seconds(gpu_box(None), share, held, 2048)
    fast = prefill_seconds(gpu_box(25e9), share, held, 2048)
    slow = prefill_seconds(gpu_box(1.0), share, held, 2048)
    copying_s = 42 * 230 * SIZE / 25e9
    assert fast < without / 2
    assert fast >= 0.9 * min(copying_s, without)
    assert slow == pytest.approx(without, rel=1e-6)


def test_a_faster_bus_is_never_slower() -> None:
    share, held = np.tile([0.2, 0.8], (42, 1)), np.tile([58, 230], (42, 1))
    seconds = [prefill_seconds(gpu_box(rate), share, held, 512) for rate in (1e9, 4e9, 16e9, 64e9)]
    assert seconds == sorted(seconds, reverse=True)


@given(num_experts=st.integers(1, 288), rows=st.integers(1, 600), gflops=st.sampled_from([100, 700, 5000]))
@examples(40)
def test_a_run_that_copies_whole_equal_experts_takes_at_most_one_of_them_longer(
    num_experts: int, rows: int, gflops: float
) -> None:
    """The closed form cuts experts into any shares, and its copies meet the GPU at once."""
    link = 25e9
    problem = gpu_box(link, gflops)
    on_gpu, in_ram = (
        ExpertSeconds.line(
            0.0, 2 * STEP_3_5_FLASH.expert_parameters / d.ffn_flops_per_s, SIZE / d.bandwidth_bytes_per_s
        )
        for d in problem.devices
    )
    of_pass, each = prefill_rates(problem, rows), np.full(num_experts, rows)
    rates = StreamingRates(SIZE / link, in_ram, on_gpu)
    found = choose_streamed(each, rates, gpu_busy_s=float(of_pass.busy_s[0]))
    counts = [np.array([0, count]) for count in (rows, num_experts, num_experts * rows)]
    mean_s = float(prefill_layer_seconds(problem, of_pass, *counts))
    one_s = rates.copy_s + float(in_ram.of(each)[0] + on_gpu.of(each)[0])
    assert mean_s * (1 - 1e-9) <= found.seconds <= mean_s + one_s


def test_replayed_steps_are_those_of_the_simulator() -> None:
    system = system_of(random_plan(1), workload=Workload(drafts=2))
    trace = random_trace(0, 30)
    steps = [trace[i : i + 3] for i in range(0, 30, 3)]
    replayed, simulated = replay_decode(system, steps, num_tokens=10), simulate_alone(system, [trace])
    assert replayed.duration_s == pytest.approx(simulated.duration_s)
    assert replayed.counts == simulated.counts
    assert replayed.num_tokens == 10


def test_a_step_with_fewer_drafts_asks_for_fewer_rows() -> None:
    system = system_of(random_plan(1), workload=Workload(drafts=2))
    trace = random_trace(0, 4)
    report = replay_decode(system, [trace[:3], trace[3:]], num_tokens=2)
    assert sum(report.counts.activations) == 4 * system.shape.num_moe_layers * system.shape.top_k
    assert report.num_steps == 2


def test_a_prompt_in_chunks_asks_for_the_same_pairs_and_reads_experts_again_for_each() -> None:
    system = system_of(random_plan(1))
    trace = random_trace(0, 60)
    whole, cut = replay_prefill(system, [trace]), replay_prefill(system, [trace[:20], trace[20:]])
    assert whole.counts.activations == cut.counts.activations
    assert sum(whole.counts.experts_read) < sum(cut.counts.experts_read)
    assert whole.duration_s < cut.duration_s
    assert whole.counts.sent_bytes == cut.counts.sent_bytes
