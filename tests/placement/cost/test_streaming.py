"""Rates for streaming from a problem's devices: the same seconds as the roofline has, expert by expert."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.cost.prefill import prefill_layer_seconds, prefill_rates
from placement.cost.streaming import expert_seconds, streaming_rates
from placement.given.cluster_spec import Overheads
from placement.given.kernel_rates import KernelRates
from placement.given.problem import PlanningProblem
from placement.model_shape import STEP_3_5_FLASH
from placement.streaming import choose_streamed
from tests.examples import examples
from tests.placement.boxes import device

SIZE = STEP_3_5_FLASH.expert_bytes(4.5)
GPU = replace(
    device("head", 1500, SIZE, tier="vram", gbytes_per_s=900, gflops=60_000), host_link_bytes_per_s=25e9
)
RAM = replace(
    device("home-ram", 12_000, SIZE, home=True, gbytes_per_s=60, gflops=700),
    overheads=Overheads(expert_s=1e-4),
)
PARAMETERS = STEP_3_5_FLASH.expert_parameters


def problem_of(form: str | None = None) -> PlanningProblem:
    return PlanningProblem(STEP_3_5_FLASH, (GPU, RAM), SIZE, expert_form=form)


def test_without_rates_of_its_kernels_a_device_multiplies_at_its_one_rate() -> None:
    rows = np.array([0, 1, 500])
    expected = [0.0, SIZE / 60e9, 1e-4 + 500 * 2 * PARAMETERS / 700e9]
    assert expert_seconds(problem_of(), RAM).of(rows) == pytest.approx(expected)


@pytest.mark.parametrize("form", ["q4_k", "q4_k/q6_k/q4_k"])
def test_measured_kernels_count_matrix_by_matrix(form: str) -> None:
    kernels = (
        KernelRates("q4_k", (1, 4, 64), (10e9, 30e9, 200e9)),
        KernelRates("q6_k", (1, 8), (5e9, 40e9)),
    )
    ram = replace(RAM, kernels=kernels)
    problem = problem_of(form)
    named = form.split("/")
    rows = np.array([1, 2, 4, 6, 8, 30, 64, 1000])
    expected = [
        max(SIZE / 60e9, sum(ram.multiply_s(f, PARAMETERS // len(named), n) for f in named)) for n in rows
    ]
    assert expert_seconds(problem, ram).of(rows) == pytest.approx(expected)


def test_a_gpu_without_a_host_link_is_not_streamed_into() -> None:
    assert streaming_rates(problem_of(), replace(GPU, host_link_bytes_per_s=None), RAM) is None


@given(num_experts=st.integers(1, 288), rows=st.integers(1, 600), gflops=st.sampled_from([100, 700, 5000]))
@examples(40)
def test_with_equal_experts_it_is_the_mean_form_but_for_whole_experts_and_the_first_copy(
    num_experts: int, rows: int, gflops: int
) -> None:
    """The closed form of 'Prefill' cuts experts into any shares, and its copies meet the GPU at once."""
    ram = device("home-ram", 12_000, SIZE, home=True, gbytes_per_s=60, gflops=gflops)
    problem = replace(problem_of(), devices=(GPU, ram))
    rates, of_pass = streaming_rates(problem, GPU, ram), prefill_rates(problem, rows)
    assert rates is not None
    each = np.full(num_experts, rows)
    found = choose_streamed(each, rates, gpu_busy_s=float(of_pass.busy_s[0]))
    counts = [np.array([0, count]) for count in (rows, num_experts, num_experts * rows)]
    mean_s = float(prefill_layer_seconds(problem, of_pass, *counts))
    one_s = rates.copy_s + float(rates.cpu.of(each)[0] + rates.gpu.of(each)[0])
    assert mean_s * (1 - 1e-9) <= found.seconds <= mean_s + one_s
