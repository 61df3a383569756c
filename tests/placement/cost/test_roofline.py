"""The cost model against figures worked out by hand, and what must hold for any rates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from placement.cost.head import head_layer_seconds, head_seconds
from placement.cost.prefill import prefill_seconds
from placement.cost.rates import expert_rates
from placement.cost.roofline import ExpertRates, device_seconds, work_alone_seconds
from placement.errors import InputError
from placement.given.cluster_spec import Overheads
from placement.given.kernel_rates import ATTENTION, KernelRates, RowCosts
from placement.given.problem import PlanningProblem
from placement.model_shape import STEP_3_5_FLASH
from placement.workload import HeadForm, HeadForms, Workload
from tests.placement.boxes import device

Q4_EXPERT = STEP_3_5_FLASH.expert_bytes(4.5)


def problem(workload: Workload = Workload(), gflops: float = 1e6) -> PlanningProblem:  # noqa: B008
    """A 100 GB/s head and a 50 GB/s box behind 1 Gbit/s."""
    devices = (
        device("head", 6000, Q4_EXPERT, gbytes_per_s=100, gflops=gflops),
        device("attic", 7000, Q4_EXPERT, gbytes_per_s=50, gflops=gflops),
    )
    return PlanningProblem(STEP_3_5_FLASH, devices, Q4_EXPERT, workload=workload)


def test_one_token_costs_a_round_trip_the_wire_and_the_bytes_of_its_experts() -> None:
    rates = expert_rates(problem(Workload(head_bits_per_weight=4.5)))
    seconds = device_seconds(rates, np.array([1, 1]), np.array([5, 3]), np.array([5, 3]))
    shared = Q4_EXPERT / 100e9
    assert seconds[0] == pytest.approx(shared + 5 * Q4_EXPERT / 100e9)
    wire = (8260 + 16385) / 125e6
    assert seconds[1] == pytest.approx(3e-4 + wire + 3 * Q4_EXPERT / 50e9)


def test_a_device_that_is_not_asked_costs_nothing_but_the_shared_expert_at_the_head() -> None:
    rates = expert_rates(problem())
    nothing = np.zeros(2, dtype=int)
    seconds = device_seconds(rates, nothing, nothing, nothing)
    assert seconds[0] == pytest.approx(STEP_3_5_FLASH.expert_bytes(16) / 100e9)
    assert seconds[1] == 0


def test_many_rows_are_bound_by_arithmetic() -> None:
    rates = expert_rates(problem(gflops=1000))
    seconds = device_seconds(rates, np.array([0, 512]), np.array([0, 150]), np.array([0, 2000]))
    wire = 512 * (8260 + 16385) / 125e6
    assert seconds[1] == pytest.approx(3e-4 + wire + 2000 * 2 * 15_728_640 / 1e12)


def test_reading_that_arithmetic_does_not_hide_counts_where_arithmetic_rules() -> None:
    told = problem(gflops=1000)
    told = replace(told, devices=tuple(replace(d, overheads=Overheads(expert_s=1e-4)) for d in told.devices))
    rates = expert_rates(told)
    pair_s, read_s = 2 * 15_728_640 / 1e12, Q4_EXPERT / 50e9
    many = work_alone_seconds(rates, np.array([0, 150]), np.array([0, 2000]))
    assert many[1] == pytest.approx(150 * 1e-4 + 2000 * pair_s)
    one = work_alone_seconds(rates, np.array([0, 5]), np.array([0, 5]))
    assert one[1] == pytest.approx(5 * read_s)


def test_a_token_reads_the_published_bytes_of_the_head() -> None:
    """6.2 B parameters: 12.3 GB in bf16; shared experts (0.66 B) count with the layers they run in."""
    seconds = head_seconds(problem())
    shared_s = 42 * STEP_3_5_FLASH.shared_expert_parameters * 2 / 100e9
    assert (seconds.total_s + shared_s) * 100 == pytest.approx(12.35, abs=0.05)
    assert seconds.mtp_s == 0
    assert seconds.kv_cache_s == 0


def test_context_costs_kv_bytes_on_full_layers_and_stops_at_the_window_on_others() -> None:
    kv_s = [head_seconds(problem(Workload(context=c))).kv_cache_s for c in (512, 262_144)]
    assert kv_s[0] * 100e9 == pytest.approx(45 * 4096 * 512)
    assert kv_s[1] * 100e9 == pytest.approx(12 * 4096 * 262_144 + 33 * 4096 * 512)


def test_drafts_cost_their_own_layers_and_heads() -> None:
    one, three = (head_seconds(problem(Workload(drafts=d))) for d in (1, 3))
    assert one.mtp_s * 100e9 == pytest.approx(1.62e9, rel=0.01)
    assert three.mtp_s == pytest.approx(3 * one.mtp_s)
    assert three.lm_head_s == pytest.approx(one.lm_head_s)


def test_the_heads_layers_add_up_to_its_step() -> None:
    asked = problem(Workload(num_sequences=2, drafts=2, context=5000))
    whole, layers = head_seconds(asked), head_layer_seconds(asked)
    assert len(layers) == 45
    assert layers.sum() + whole.lm_head_s + whole.mtp_s == pytest.approx(whole.total_s, rel=1e-12)
    assert layers[0] > layers[4] != layers[5] == layers[6]  # dense, full attention, sliding, sliding


def test_a_head_without_a_device_has_no_known_speed() -> None:
    headless = replace(problem(), devices=problem().devices[1:])
    with pytest.raises(InputError, match="its speed is unknown"):
        head_seconds(headless)


def test_prefill_on_one_box_is_bound_by_its_arithmetic() -> None:
    """Figure of the linear layers alone: 2 FLOPs a parameter and token, few bytes beside them."""
    alone = replace(problem(gflops=1000), devices=problem(gflops=1000).devices[:1])
    share, held = np.ones((42, 1)), np.full((42, 1), 288)
    num_tokens = 2048
    seconds = prefill_seconds(alone, share, held, num_tokens)
    shape = STEP_3_5_FLASH
    active = shape.head_read_parameters - shape.lm_head_parameters + 42 * 8 * shape.expert_parameters
    linear_s = 2 * active * num_tokens / 1e12
    assert linear_s < seconds < 1.1 * linear_s


def test_prefill_over_a_thin_wire_is_bound_by_it() -> None:
    share = np.tile([0.5, 0.5], (42, 1))
    held = np.full((42, 2), 144)
    thin, wide = problem(), problem()
    wide = replace(wide, devices=(wide.devices[0], replace(wide.devices[1], link_bytes_per_s=1e12)))
    extra = prefill_seconds(thin, share, held, 1000) - prefill_seconds(wide, share, held, 1000)
    assert extra == pytest.approx(42 * 1000 * (8260 + 16385) / 125e6, rel=0.05)


def test_more_work_and_slower_rates_never_take_less_time() -> None:
    generator = np.random.default_rng(0)
    for _ in range(100):
        fields = [generator.random(3) for _ in range(5)]
        slower = [f + generator.random(3) for f in fields]
        rows, distinct, pairs = (generator.integers(0, 9, 3) for _ in range(3))
        seconds = device_seconds(ExpertRates(*fields), rows, distinct, pairs)
        assert (device_seconds(ExpertRates(*slower), rows, distinct, pairs) >= seconds).all()
        assert (device_seconds(ExpertRates(*fields), rows + 1, distinct + 1, pairs + 1) >= seconds).all()


Q4 = KernelRates("q4_k", (1, 2, 4), (100e9, 160e9, 200e9))
"""Seconds of a pass for each GFLOP of a row: 0.01, 0.0125, 0.02."""


def with_kernels(workload: Workload, *kernels: KernelRates) -> PlanningProblem:
    plain = problem(workload, gflops=1.0)
    devices = tuple(replace(d, kernels=kernels) for d in plain.devices)
    return replace(plain, devices=devices, expert_form="q4_k")


def test_experts_take_what_kernels_of_their_form_take() -> None:
    rates = expert_rates(with_kernels(Workload(), Q4))
    gflop = 2 * STEP_3_5_FLASH.expert_parameters / 1e9
    pass_s = rates.expert_s[0] + np.array([1, 2]) * rates.compute_s[0]
    np.testing.assert_allclose(pass_s, gflop * np.array([0.01, 0.0125]))


def test_an_expert_of_mixed_forms_takes_the_sum_of_its_matrices() -> None:
    q5 = KernelRates("q5_k", (1, 2), (50e9, 80e9))
    mixed = replace(with_kernels(Workload(), Q4, q5), expert_form="q4_k/q4_k/q5_k")
    rates = expert_rates(mixed)
    gflop = 2 * STEP_3_5_FLASH.expert_parameters / 1e9
    assert rates.expert_s[0] + rates.compute_s[0] == pytest.approx(gflop * (0.01 + 0.01 + 0.02) / 3)


def test_a_form_without_kernels_falls_back_to_the_devices_one_rate() -> None:
    plain = expert_rates(replace(with_kernels(Workload(), Q4), expert_form="q6_k"))
    assert plain.compute_s[0] == pytest.approx(2 * STEP_3_5_FLASH.expert_parameters / 1e9)


def test_the_head_reads_each_part_in_its_own_form_and_multiplies_at_its_kernels_rate() -> None:
    forms = HeadForms(*map(HeadForm.of, ("q8_0", "float32", "q4_k", "q4_k")))
    one = head_seconds(with_kernels(Workload(head_forms=forms), Q4))
    assert one.lm_head_s == pytest.approx(2e-9 * STEP_3_5_FLASH.lm_head_parameters * 0.01)
    router_bytes = 42 * 4 * STEP_3_5_FLASH.router_parameters
    quick = with_kernels(
        Workload(head_forms=forms),
        *(replace(Q4, form=f, flops_per_s=(1e18,) * 3) for f in ("q8_0", "q4_k", "float32")),
    )
    assert head_seconds(quick).router_s == pytest.approx(router_bytes / 100e9)
    three = head_seconds(with_kernels(Workload(drafts=2, head_forms=forms), Q4))
    assert three.lm_head_s / one.lm_head_s == pytest.approx(0.01625 / 0.01)


def test_attention_may_have_rates_by_rows() -> None:
    rates = KernelRates(ATTENTION, (1, 3), (1e9, 2e9))
    slow = head_seconds(with_kernels(Workload(context=4096), rates)).kv_cache_s
    flops = 4 * 128 * (12 * 64 * 4096 + 33 * 96 * 512)
    assert slow == pytest.approx(flops / 1e9)
    assert head_seconds(with_kernels(Workload(context=4096, drafts=2), rates)).kv_cache_s == pytest.approx(
        3 * flops / 2e9
    )


def with_fields(workload: Workload, **fields: object) -> PlanningProblem:
    plain = problem(workload)
    return replace(plain, devices=tuple(replace(d, **fields) for d in plain.devices))  # type: ignore[arg-type]


def test_keys_and_values_may_be_read_at_a_bandwidth_of_their_own() -> None:
    workload = Workload(context=4096)
    usual = head_seconds(problem(workload))
    slow = head_seconds(with_fields(workload, attention_bandwidth_bytes_per_s=25e9))
    assert slow.kv_cache_s == pytest.approx(4 * usual.kv_cache_s)
    assert slow.total_s - slow.kv_cache_s == pytest.approx(usual.total_s - usual.kv_cache_s)
    prompt = problem(workload, gflops=1e9), with_fields(workload, attention_bandwidth_bytes_per_s=1e6)
    share, held = np.ones((42, 2)) / 2, np.full((42, 2), 144)
    assert prefill_seconds(prompt[1], share, held, 4) > prefill_seconds(prompt[0], share, held, 4)


COSTS = RowCosts.of({2: 1.5, 4: 2.0})


def test_a_pass_of_a_few_rows_takes_as_many_times_one_rows_as_the_device_says() -> None:
    def lm_head_s(rows: int) -> float:
        return head_seconds(with_fields(Workload(num_sequences=rows), row_costs=COSTS)).lm_head_s

    assert [lm_head_s(rows) / lm_head_s(1) for rows in (2, 3, 4)] == pytest.approx([1.5, 1.75, 2.0])
    # Beyond, as long as for the most rows that are known, until arithmetic takes longer.
    assert lm_head_s(8) == pytest.approx(lm_head_s(4))
    many = 10**6
    plain = problem(Workload(num_sequences=many))
    assert lm_head_s(many) == pytest.approx(head_seconds(plain).lm_head_s)


def test_an_expert_that_two_rows_chose_takes_what_the_device_says_of_two_rows() -> None:
    rates = expert_rates(with_fields(Workload(drafts=1), row_costs=COSTS))
    once, twice = (work_alone_seconds(rates, np.array([3, 0]), np.array([p, 0]))[0] for p in (3, 6))
    assert once == pytest.approx(3 * rates.read_s[0])
    assert twice == pytest.approx(1.5 * once)


def test_kernels_of_a_form_count_in_place_of_row_costs() -> None:
    kernels = (replace(Q4, flops_per_s=(1e15,) * 3),)
    forms = HeadForms(*map(HeadForm.of, ("q4_k", "q4_k", "q4_k", "q4_k")))
    workload = Workload(num_sequences=2, head_forms=forms)
    quick = head_seconds(with_fields(workload, row_costs=COSTS, kernels=kernels))
    assert quick.lm_head_s == pytest.approx(head_seconds(problem(workload)).lm_head_s)
