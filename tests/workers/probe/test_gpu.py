"""A card is measured by the code that runs on it."""

from __future__ import annotations

import pytest

from placement.given.probe_figures import Gpu
from placement.weight_format import FORMATS
from tests.cuda_on_cpu.card import Card
from tests.workers.gpu.conftest import card
from workers.gpu.opening import cards
from workers.probe.experts import Width
from workers.probe.gpu import gpus, opened
from workers.probe.gpu_clock import card_s
from workers.probe.gpu_kernels import ROWS

__all__ = ("card",)

NARROW = Width(256, 32)
SMALL = 517_000_000
"""A card's memory of which 5 MB may be used, so that little is computed on the CPU that plays it."""


def measured(*forms: str, seconds: float = 0.0) -> tuple[Gpu, ...]:
    return gpus(opened(cards()), [FORMATS[name] for name in forms], NARROW, seconds)


@pytest.mark.card
def test_every_figure_of_a_card_is_measured(card: Card) -> None:
    used = card.count("used")
    card.set("memory", used + SMALL)
    (found,) = measured("bfloat16", "q8_0")
    assert (found.device, found.memory_bytes, found.free_bytes) == ("cuda:0", used + SMALL, SMALL)
    assert found.name == "CPU that plays card 0"
    rates = (
        found.bandwidth_bytes_per_s,
        found.copy_bytes_per_s,
        found.back_bytes_per_s,
        found.pageable_bytes_per_s,
        found.pageable_back_bytes_per_s,
        found.flops_per_s,
    )
    assert all(rate is not None and rate > 0 for rate in rates)
    assert 0 < found.round_trip_s < 1
    assert [rate.form for rate in found.kernels] == ["bfloat16", "q8_0"]
    assert all(rate.rows == ROWS == (1, 2, 4, 8, 16, 64) for rate in found.kernels)
    # Less where what an earlier test left behind was collected meanwhile.
    assert card.count("used") <= used


def test_what_other_programs_hold_of_a_card_is_not_free(card: Card) -> None:
    total = card.count("used") + SMALL + 50_000_000
    card.set("memory", total)
    card.set("others", 50_000_000)
    (found,) = measured("bfloat16")
    assert (found.memory_bytes, found.free_bytes) == (total, SMALL)


@pytest.mark.card
def test_each_of_several_cards_is_measured_and_one_that_is_full_is_left_out(card: Card) -> None:
    card.set("count", 2)
    card.set("memory", card.count("used") + SMALL)
    assert [gpu.device for gpu in measured("bfloat16")] == ["cuda:0", "cuda:1"]
    card.set("others", SMALL)
    assert measured("bfloat16") == ()


@pytest.mark.parametrize("setting", [{"count": 0}, {"capability": 61}, {"init": 100}])
def test_without_a_card_that_runs_our_kernels_there_is_nothing_to_measure(
    card: Card, setting: dict[str, int]
) -> None:
    for name, value in setting.items():
        card.set(name, value)
    assert opened(cards()) == ()
    assert gpus((), [FORMATS["q8_0"]], NARROW, 10.0) == ()


def test_an_action_is_timed_on_the_cards_clock_as_often_as_it_must(card: Card) -> None:
    device = card.device()
    stream = device.stream()
    memory, turns = device.allocate(1 << 20), []

    def action() -> None:
        turns.append(None)
        stream.clear(memory.address, memory.num_bytes)

    assert card_s(stream, action, 0.0, least_turns=5) >= 5e-7
    # One that does not count.
    assert len(turns) == 6
