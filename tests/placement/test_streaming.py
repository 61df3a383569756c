"""Which experts to stream: against every split and every order of copies, and what it tells of itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.streaming import ExpertSeconds, StreamingRates, choose_streamed, crossover_rows
from tests.examples import examples

NONE_OR_MORE = st.lists(st.integers(0, 60), min_size=0, max_size=6)
SECONDS = st.floats(0.0, 4.0)
POSITIVE = st.floats(0.01, 4.0)


def layer_seconds(
    order: tuple[int, ...], rows: list[int], rates: StreamingRates, gpu_busy_s: float, cpu_busy_s: float
) -> float:
    """Two buffers in turn, written as events: a copy waits for the link and for a free buffer."""
    cpu, gpu = (rates.cpu.of(np.array(rows)), rates.gpu.of(np.array(rows)))
    buffer_free, link_free, gpu_free = [0.0, 0.0], 0.0, 0.0
    for expert in order:
        buffer = buffer_free.index(min(buffer_free))
        arrived = max(link_free, buffer_free[buffer]) + rates.copy_s
        link_free = arrived
        gpu_free = max(gpu_free, arrived) + gpu[expert]
        buffer_free[buffer] = gpu_free
    gpu_work = gpu_busy_s + sum(gpu[expert] for expert in order)
    kept = cpu_busy_s + sum(cpu[e] for e in range(len(rows)) if e not in order)
    return max(gpu_free, gpu_work, kept)


def best_of_all(rows: list[int], rates: StreamingRates, gpu_busy_s: float, cpu_busy_s: float) -> float:
    asked = [expert for expert, count in enumerate(rows) if count]
    return min(
        layer_seconds(order, rows, rates, gpu_busy_s, cpu_busy_s)
        for size in range(len(asked) + 1)
        for order in itertools.permutations(asked, size)
    )


@given(rows=NONE_OR_MORE, copy_s=POSITIVE, cpu=st.tuples(SECONDS, SECONDS), gpu_s=SECONDS, busy=SECONDS)
@examples(60)
def test_where_the_gpu_takes_equally_long_for_each_it_is_the_best_of_all_splits_and_orders(
    rows: list[int], copy_s: float, cpu: tuple[float, float], gpu_s: float, busy: float
) -> None:
    rates = StreamingRates(copy_s, ExpertSeconds.line(*cpu), ExpertSeconds.line(gpu_s, 0.0))
    found = choose_streamed(np.array(rows, dtype=np.int64), rates, gpu_busy_s=busy)
    assert found.seconds == pytest.approx(best_of_all(rows, rates, busy, 0.0))


@given(
    rows=NONE_OR_MORE,
    copy_s=POSITIVE,
    cpu=st.tuples(POSITIVE, POSITIVE),
    share=st.floats(0.0, 1.0),
    row_share=st.floats(0.0, 1.0),
    busy=st.tuples(SECONDS, SECONDS),
)
@examples(60)
def test_elsewhere_it_is_at_most_one_experts_gpu_time_above_the_best_of_all(
    rows: list[int],
    copy_s: float,
    cpu: tuple[float, float],
    share: float,
    row_share: float,
    busy: tuple[float, float],
) -> None:
    """The GPU takes `share` of the CPU's time for an expert, and at most that share for a row."""
    gpu = ExpertSeconds.line(cpu[0] * share, cpu[1] * share * row_share)
    rates = StreamingRates(copy_s, ExpertSeconds.line(*cpu), gpu)
    found = choose_streamed(np.array(rows, dtype=np.int64), rates, gpu_busy_s=busy[0], cpu_busy_s=busy[1])
    best = best_of_all(rows, rates, *busy)
    longest = max(gpu.of(np.array(rows)), default=0.0)
    assert best - 1e-9 <= found.seconds <= best + longest + 1e-9


@given(rows=NONE_OR_MORE, copy_s=POSITIVE, cpu=st.tuples(SECONDS, SECONDS), gpu=st.tuples(SECONDS, SECONDS))
def test_what_it_tells_is_what_its_choice_takes(
    rows: list[int], copy_s: float, cpu: tuple[float, float], gpu: tuple[float, float]
) -> None:
    rates = StreamingRates(copy_s, ExpertSeconds.line(*cpu), ExpertSeconds.line(*gpu))
    found = choose_streamed(np.array(rows, dtype=np.int64), rates, gpu_busy_s=0.3, cpu_busy_s=0.2)
    assert sorted(found.order.tolist()) == np.flatnonzero(found.is_streamed).tolist()
    assert all(rows[expert] > 0 for expert in found.order)
    assert found.seconds == pytest.approx(layer_seconds(tuple(found.order), rows, rates, 0.3, 0.2))
    assert found.seconds <= found.all_in_ram_s
    assert found.all_in_ram_s == pytest.approx(layer_seconds((), rows, rates, 0.3, 0.2))
    assert max(found.cpu_s, found.stream_s) <= found.seconds


@given(
    copy_s=st.floats(0.0, 50.0),
    cpu=st.tuples(SECONDS, SECONDS, SECONDS),
    gpu=st.tuples(SECONDS, SECONDS, SECONDS),
    most=st.integers(1, 60),
)
def test_from_the_crossover_on_copying_a_lone_expert_is_faster_and_just_before_it_is_not(
    copy_s: float, cpu: tuple[float, float, float], gpu: tuple[float, float, float], most: int
) -> None:
    rates = StreamingRates(copy_s, ExpertSeconds.line(*cpu), ExpertSeconds.line(*gpu))

    def is_faster(rows: int) -> bool:
        one = np.array([rows])
        return bool(rates.cpu.of(one)[0] > copy_s + rates.gpu.of(one)[0])

    found = crossover_rows(rates, most)
    if found is None:
        assert not is_faster(most)
    else:
        assert all(is_faster(rows) for rows in range(found, most + 1))
        assert found == 1 or not is_faster(found - 1)
        lone = choose_streamed(np.array([found]), rates)
        assert lone.is_streamed.tolist() == [True]


def test_an_expert_takes_what_its_points_say_and_never_less_than_reading_it() -> None:
    seconds = ExpertSeconds(rows=(1.0, 4.0, 8.0), seconds=(2.0, 3.0, 7.0), row_s=0.5, read_s=2.5)
    rows = np.array([[0, 1, 2], [4, 6, 10]])
    assert seconds.of(rows).tolist() == [[0.0, 2.5, 2.5], [3.0, 5.0, 8.0]]


def test_hot_experts_of_a_prompt_are_copied_and_cold_ones_stay() -> None:
    """Figures of a usual box: 6.5 MB an expert, 25 GB/s of PCIe, 40 GB/s and 1 TFLOP/s beside 40 TFLOP/s."""
    cpu = ExpertSeconds.line(0.0, 2 * 15.7e6 / 1e12, read_s=6.5e6 / 40e9)
    gpu = ExpertSeconds.line(0.0, 2 * 15.7e6 / 40e12, read_s=6.5e6 / 800e9)
    rates = StreamingRates(6.5e6 / 25e9, cpu, gpu)
    rows = np.array([400, 300, 200] + [4] * 40)
    found = choose_streamed(rows, rates)
    assert found.is_streamed[:3].all()
    assert not found.is_streamed.all()
    assert found.seconds < 0.25 * found.all_in_ram_s
    assert crossover_rows(rates) == 9
