"""The measurements of the repository, what is written down of them, and the files that say so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.published.__main__ import PAGE, page_parts
from benchmarks.published.files import load_measurements, load_passes, load_reached
from benchmarks.published.halves import Judgement, Published
from benchmarks.published.hardware_file import shown, with_values
from benchmarks.published.judge import coverage, median_error, worst_error
from benchmarks.published.probed import probed_range
from benchmarks.published.report import with_part
from benchmarks.published.same_boxes import same_boxes_range
from benchmarks.published.shares import fitted
from placement.errors import InputError
from placement.hardware.catalogue import packaged_catalogue
from placement.hardware.spread import Range, packaged_spreads
from tests.benchmarks.published.made_up import measured

ROOT = Path(__file__).parents[3]
AGAIN = "run `python -m benchmarks.published --fit`"
REACHED = """\
# Shares.
apple:
  source: somebody   # a note
  bandwidth_share: 0.5   # of the sheet
  layer_s: 0.0001
desktop-ram:
  bandwidth_share: 0.6
same_boxes:
  low: 0.7
"""


@pytest.fixture(scope="module")
def published() -> Published:
    return Published.load(packaged_catalogue())


@pytest.fixture(scope="module")
def judgement(published: Published) -> Judgement:
    return Judgement.of(published, packaged_catalogue())


def test_there_are_enough_measurements_of_enough_devices(published: Published) -> None:
    counted = [*published.fit, *published.judged]
    assert len(counted) >= 20
    assert len({tuple(map(tuple, m.of_boxes)) for m in counted}) >= 14
    classes = {packaged_catalogue().entry(m.first_device).hardware_class for m in counted}
    assert {"discrete-gpu", "apple-m2-m3", "unified-pc", "server-ram", "desktop-ram"} <= classes
    assert {m.first_device for m in published.fit}.isdisjoint(m.first_device for m in published.judged)


def test_no_device_is_judged_by_what_was_published_of_itself(published: Published) -> None:
    for measurement in (*published.fit, *published.judged):
        for name in (name for box in measurement.of_boxes for name in box):
            reached = packaged_catalogue().entry(name).reached
            assert reached is None or not reached.figures, f"{measurement.id}: {name}"


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"excluded": "mmap from disk"}, "mmap from disk"),
        ({"quant": "not stated"}, "form of the weights not stated"),
        ({"split": "cpu"}, "the catalogue has the GPU alone"),
    ],
)
def test_what_says_nothing_of_the_hardware_is_left_out_with_its_rule(
    fields: dict[str, Any], rule: str
) -> None:
    kept, odd = measured(["m4-max"]), measured(["m4-max"], **fields)
    published = Published.of([kept, odd], packaged_catalogue())
    ((left_out, reason),) = published.left_out
    assert (left_out, [*published.fit, *published.judged]) == (odd, [kept])
    assert rule in reason


def test_the_judged_half_is_as_near_as_was_aimed_at(judgement: Judgement) -> None:
    assert median_error(judgement.judged) <= 0.2
    assert worst_error(judgement.judged) <= 0.4


def test_stored_shares_are_those_of_the_fitting_half(published: Published) -> None:
    for figure, value in fitted(published.fit, packaged_catalogue()).items():
        stored = getattr(packaged_catalogue().classes[figure.of_class], figure.name)
        assert stored == pytest.approx(value, rel=0.03, abs=2e-6), f"{figure}: {AGAIN}"


def test_the_stored_range_is_that_of_devices_that_set_nothing(judgement: Judgement) -> None:
    within, stored = judgement.range(), packaged_spreads().judged
    assert figures(stored) == pytest.approx((within.low, within.high, within.covers), rel=0.01), AGAIN
    assert stored.count == within.count == len(judgement.judged) + len(judgement.fit), AGAIN
    # Measured often or not, a device's own measurements are no more than a little rarer in it than devices.
    assert coverage(judgement.judged, within) >= 0.7
    assert coverage(judgement.swapped, within) >= 0.7


def test_the_range_of_probed_boxes_is_that_of_our_own_runs() -> None:
    within, stored = probed_range(), packaged_spreads().probed
    assert figures(stored) == pytest.approx((within.low, within.high, within.covers), rel=0.005)
    assert stored.count == within.count
    judged = packaged_spreads().judged
    assert stored.high / stored.low < judged.high / judged.low


def test_the_range_of_differences_on_the_same_boxes_is_that_of_pairs() -> None:
    within, stored = same_boxes_range(), packaged_spreads().same_boxes
    assert figures(stored) == pytest.approx((within.low, within.high, within.covers), rel=0.005), AGAIN
    assert stored.count == within.count, AGAIN
    assert within.low * within.high == pytest.approx(1)
    # What is common to both predictions is left out.
    assert stored.margin < min(packaged_spreads().judged.margin, packaged_spreads().probed.margin)


def test_pages_state_the_ranges_that_predictions_have() -> None:
    spreads = packaged_spreads()
    page = " ".join((ROOT / "docs" / "planner.md").read_text(encoding="utf-8").split())
    for of, within in (
        ("other hardware or another head, typed or from the catalogue | of speeds", spreads.judged),
        ("other hardware, all probed | of speeds", spreads.probed),
        ("two plans on the same cluster with the same head | of the ratio of two speeds", spreads.same_boxes),
    ):
        assert f"| {of}, {within.low:.2f} to {within.high:.2f} | {within.margin:.0%} |" in page
    same, other = f"{spreads.same_boxes.margin:.0%}", f"{spreads.judged.margin:.0%}"
    assert f"than all other policies by more than {same}." in page
    assert f"less sure than {same} beside one that stays at home" in page
    assert f"A speed that may be {spreads.judged.low:.2f} of its prediction needs a gain of {other}" in page
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    found = spreads.same_boxes
    assert f"The range is {found.low:.2f} to {found.high:.2f}, from {found.count} pairs" in page
    assert f"{found.count} pairs, and {found.covers:.0%} of the next ones" in page
    assert f"a difference of {other} may be none, or of {spreads.probed.margin:.0%} if all are" in page
    assert (
        f"[RESULTS.md](../benchmarks/RESULTS.md)): {spreads.probed.low:.2f} to {spreads.probed.high:.2f}."
        in page
    )
    assert f"where most errors cancel and {same} is enough" in readme()


def test_the_readme_states_how_far_the_judged_half_is_off(judgement: Judgement) -> None:
    devices = len({one.measurement.first_device for one in judgement.judged})
    errors = median_error(judgement.judged), worst_error(judgement.judged)
    assert (
        f"on the other half ({len(judgement.judged)} measurements of {devices} devices) off by "
        f"{errors[0]:.0%} in the median, {errors[1]:.0%} at worst"
    ) in readme()


def readme() -> str:
    return " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def figures(spread: Range) -> tuple[float, float, float]:
    return spread.low, spread.high, spread.covers


@pytest.fixture(scope="module")
def parts() -> dict[str, str]:
    return page_parts(packaged_catalogue())


def test_the_page_shows_what_the_program_says(parts: dict[str, str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, part in parts.items():
        assert with_part(text, name, part, PAGE) == text, f"{name}: {AGAIN}"


def test_each_figure_that_the_catalogue_calls_published_stands_among_the_published_ones() -> None:
    found = load_reached()
    for entry in packaged_catalogue().entries.values():
        if entry.reached is None:
            continue
        values = [entry.reached.read_gbytes_per_s, *entry.reached.figures.values()]
        for value in (value for value in values if value is not None):
            places = [one for one in found if one.hardware == entry.name]
            near = [one.source for one in places if one.value == pytest.approx(value, rel=0.005)]
            (of_catalogue, *_) = re.split("[,:(]", entry.reached.source)
            assert any(source.startswith(of_catalogue) for source in near), f"{entry.name}: {value}"


def test_the_figures_are_of_hardware_that_the_catalogue_has() -> None:
    for figure in load_reached():
        entry = packaged_catalogue().entry(figure.hardware)
        assert (entry.kind == "link") == (figure.bandwidth_gbits_per_s is not None)


def test_passes_of_one_row_are_what_others_are_compared_with() -> None:
    found = load_passes()
    assert len({one.device for one in found}) >= 5
    for one in found:
        assert 1 not in one.beside_one
        assert all(ratio > 0.9 for ratio in one.beside_one.values())


def test_values_are_replaced_and_all_else_stays() -> None:
    values = {"apple": {"bandwidth_share": 0.7415, "layer_s": 1.2e-5}, "same_boxes": {"low": 0.8}}
    text = with_values(REACHED, values, "here")
    assert "  bandwidth_share: 0.742   # of the sheet\n  layer_s: 0.000012\n" in text
    assert "# Shares.\napple:\n  source: somebody   # a note\n" in text
    document = yaml.safe_load(text)
    assert document["desktop-ram"]["bandwidth_share"] == 0.6
    assert document["same_boxes"]["low"] == 0.8


def test_a_value_without_a_line_is_told() -> None:
    with pytest.raises(InputError, match=r"here.*'layer_s'.*'desktop-ram'"):
        with_values(REACHED, {"desktop-ram": {"layer_s": 1e-4}}, "here")


@pytest.mark.parametrize(
    ("value", "text"), [(0.67449, "0.674"), (3.387e-05, "0.0000339"), (78, "78"), (0.0, "0"), (1e-15, "0")]
)
def test_numbers_are_written_as_yaml_reads_numbers(value: float, text: str) -> None:
    assert shown(value) == text
    assert isinstance(yaml.safe_load(f"x: {shown(value)}")["x"], float | int)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "half"}, r"measurements\[0\].split: expected all, cpu, layers"),
        ({"devices": []}, "made-up: expected devices of one box"),
        ({"boxes": [["m4-max"], ["m4-max"]], "devices": []}, "made-up: expected a link"),
        ({"decode_tokens_per_s": 0}, "decode_tokens_per_s: expected a number above 0"),
        ({"quote": ""}, "quote: expected a longer text"),
        ({"guess": 1}, "guess: unknown key"),
    ],
)
def test_a_wrong_field_is_told_by_its_name(tmp_path, change: dict[str, object], message: str) -> None:
    measurement = {
        "id": "made-up",
        "model": "gpt-oss-120b",
        "quant": "MXFP4",
        "engine": "llama.cpp",
        "devices": ["m4-max"],
        "split": "all",
        "context": 0,
        "decode_tokens_per_s": 80,
        "source": "a",
        "url": "b",
        "quote": "c",
    }
    document = {"measurements": [{**measurement, **change}]}
    (tmp_path / "some.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_measurements(tmp_path)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("rows", {"tokens_per_second": {1: 9}}, r"rows\[0\].tokens_per_second: unknown key"),
        ("rows", {"tokens_per_s": {2: 9, 4: 12}}, r"rows\[0\].tokens_per_s: expected 1 row"),
        ("rows", {"quote": ""}, r"rows\[0\].quote: expected a longer text"),
        ("reached", {"bandwidth_gbits_per_s": 2}, r"reached\[0\]: p40: expected one of bandwidth_gbytes"),
        ("reached", {"bandwidth": 2}, r"reached\[0\].bandwidth: unknown key"),
        ("disks", {}, r"some.yaml: disks: unknown key; expected measurements, rows, reached"),
    ],
)
def test_a_wrong_field_of_another_section_is_told_by_its_name(
    tmp_path, section: str, change: dict[str, object], message: str
) -> None:
    place = {"source": "a", "url": "b", "quote": "c"}
    rows = {"device": "p40", "model": "m", "quant": "q", "engine": "e", "tokens_per_s": {1: 9, 2: 12}}
    reached = {"hardware": "p40", "what": "a copy", "bandwidth_gbytes_per_s": 300}
    document = {section: [{**(rows if section == "rows" else reached), **place, **change}]}
    (tmp_path / "some.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_measurements(tmp_path)


def test_a_device_that_the_catalogue_has_not_is_told() -> None:
    with pytest.raises(InputError, match=r"made-up.*unknown hardware 'm4-mox': is m4-max"):
        Published.of([measured(["m4-mox"])], packaged_catalogue())


def test_an_id_is_given_once(tmp_path, published: Published) -> None:
    one = published.fit[0].model_dump(exclude_none=True)
    text = yaml.safe_dump({"measurements": [one, one]})
    (tmp_path / "some.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="there twice"):
        load_measurements(tmp_path)
