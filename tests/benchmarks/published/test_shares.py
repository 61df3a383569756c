"""What classes reach, from measurements that are made up to reach it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.published.engine import places_of, predicted_tokens_per_s, problem_of, step_s
from benchmarks.published.measurements import Measurement
from benchmarks.published.shares import Figure, coefficients, figures_for, fitted, with_figures
from placement.hardware.catalogue import packaged_catalogue
from tests.benchmarks.published.made_up import measured

CARD, RAM = "rtx-4090", "ddr5-6000-dual"
MEASUREMENTS = [
    measured([CARD]),
    measured([CARD], model="qwen3-30b-a3b", quant="Q8_0"),
    measured([CARD], model="gpt-oss-20b", context=30_000),
    measured([CARD], model="mixtral-8x7b", quant="Q4_K_M"),
    measured([CARD, RAM], "experts-in-ram"),
    measured([CARD, RAM], "experts-in-ram:20", context=16_000),
    measured([RAM], "cpu"),
    measured([RAM], "cpu", model="qwen3-30b-a3b", quant="Q8_0", context=16_000),
    measured([RAM], "cpu", model="mixtral-8x7b", quant="Q4_K_M"),
]
TRUE = {
    Figure("discrete-gpu", "bandwidth_share"): 0.75,
    Figure("discrete-gpu", "attention_bandwidth_share"): 0.45,
    Figure("discrete-gpu", "layer_s"): 6e-5,
    Figure("discrete-gpu", "host_link_round_trip_s"): 1.5e-4,
    Figure("desktop-ram", "bandwidth_share"): 0.6,
    Figure("desktop-ram", "attention_bandwidth_share"): 0.3,
    Figure("desktop-ram", "layer_s"): 2e-5,
}


def made_up() -> list[Measurement]:
    """The measurements as devices of these figures would give them."""
    catalogue = with_figures(packaged_catalogue(), TRUE)
    return [
        m.model_copy(update={"decode_tokens_per_s": predicted_tokens_per_s(m, catalogue)})
        for m in MEASUREMENTS
    ]


def test_a_step_is_the_sum_of_its_coefficients() -> None:
    figures = figures_for(MEASUREMENTS, packaged_catalogue())
    assert set(figures) == set(TRUE)
    constant, slopes = coefficients(MEASUREMENTS, packaged_catalogue(), figures)
    terms = [1 / TRUE[figure] if figure.is_share else TRUE[figure] for figure in figures]
    catalogue = with_figures(packaged_catalogue(), TRUE)
    for row, measurement in enumerate(MEASUREMENTS):
        problem, _ = problem_of(measurement, catalogue)
        whole_s = step_s(problem, places_of(measurement, problem))
        # The catalogue rounds figures to three digits.
        assert constant[row] + slopes[row] @ np.array(terms) == pytest.approx(whole_s, rel=0.005)


def test_figures_are_found_again() -> None:
    found = fitted(made_up(), packaged_catalogue())
    for figure in TRUE:
        if figure.name == "bandwidth_share":
            assert found[figure] == pytest.approx(TRUE[figure], rel=0.1)
    catalogue = with_figures(packaged_catalogue(), found)
    for measurement in made_up():
        assert predicted_tokens_per_s(measurement, catalogue) == pytest.approx(
            measurement.decode_tokens_per_s, rel=0.05
        )


def test_one_odd_post_does_not_decide() -> None:
    odd = made_up()
    odd[0] = odd[0].model_copy(update={"decode_tokens_per_s": odd[0].decode_tokens_per_s / 3})
    figure = Figure("discrete-gpu", "bandwidth_share")
    assert fitted(odd, packaged_catalogue())[figure] == pytest.approx(TRUE[figure], rel=0.15)


def test_no_share_is_more_than_reading_alone_has_reached() -> None:
    fast = [m.model_copy(update={"decode_tokens_per_s": 3 * m.decode_tokens_per_s}) for m in made_up()[6:]]
    found = fitted(fast, packaged_catalogue())
    entry = packaged_catalogue().entry("ddr5-4800-dual")
    assert entry.reached is not None
    assert entry.reached.read_gbytes_per_s is not None
    most = entry.reached.read_gbytes_per_s / 76.8
    assert found[Figure("desktop-ram", "bandwidth_share")] <= most + 1e-9


def test_other_figures_leave_the_catalogue_as_it_was() -> None:
    catalogue = packaged_catalogue()
    before = dict(catalogue.classes)
    changed = with_figures(catalogue, {Figure("apple-m1", "layer_s"): 1.0})
    assert changed.classes["apple-m1"].layer_s == 1.0
    assert dict(catalogue.classes) == before
    assert replace(Figure("apple-m1", "layer_s"), name="bandwidth_share").is_share
