"""The measurements of the repository, what is written down of them, and the files that say so."""

from __future__ import annotations

import pytest
import yaml

from benchmarks.published.__main__ import PAGE, page_parts
from benchmarks.published.halves import Judgement, Published
from benchmarks.published.judge import coverage, median_error, worst_error
from benchmarks.published.measurements import load_measurements
from benchmarks.published.passes import load_passes
from benchmarks.published.probed import probed_range
from benchmarks.published.reached_file import shown, with_values
from benchmarks.published.report import with_part
from benchmarks.published.same_boxes import same_boxes_range
from benchmarks.published.shares import fitted
from placement.errors import InputError
from placement.hardware.spread import Spread, packaged_spreads
from tests.benchmarks.published.catalogues import classes_alone, measured

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
    return Published.load(classes_alone())


@pytest.fixture(scope="module")
def judgement(published: Published) -> Judgement:
    return Judgement.of(published, classes_alone())


def test_there_are_enough_measurements_of_enough_devices(published: Published) -> None:
    counted = [*published.fit, *published.judged]
    assert len(counted) >= 20
    assert len({tuple(map(tuple, m.of_boxes)) for m in counted}) >= 14
    classes = {classes_alone().entry(m.first_device).hardware_class for m in counted}
    assert {"discrete-gpu", "apple-m2-m3", "unified-pc", "server-ram", "desktop-ram"} <= classes
    assert {m.first_device for m in published.fit}.isdisjoint(m.first_device for m in published.judged)


def test_what_is_left_out_is_so_by_a_rule(published: Published) -> None:
    assert len(published.fit) + len(published.judged) + len(published.left_out) == len(load_measurements())
    assert all(reason for _, reason in published.left_out)
    # As published, mmap from disk: its speed says nothing of the box.
    assert any(m.decode_tokens_per_s == 3.43 for m, _ in published.left_out)


def test_the_judged_half_is_as_near_as_was_aimed_at(judgement: Judgement) -> None:
    assert median_error(judgement.judged) <= 0.2
    assert worst_error(judgement.judged) <= 0.4


def test_stored_shares_are_those_of_the_fitting_half(published: Published) -> None:
    for figure, value in fitted(published.fit, classes_alone()).items():
        stored = getattr(classes_alone().classes[figure.of_class], figure.name)
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


def test_the_range_of_differences_on_the_same_boxes_is_that_of_pairs(judgement: Judgement) -> None:
    within, stored = judgement.same_boxes(), packaged_spreads().same_boxes
    assert figures(stored) == pytest.approx((within.low, within.high, within.covers), rel=0.005), AGAIN
    assert stored.count == within.count, AGAIN
    assert within.low * within.high == pytest.approx(1)
    # Pairs of our own and of others: without the latter it would be narrower.
    own = same_boxes_range([])
    assert 1 < own.high <= within.high
    assert own.count < within.count
    # What is common to both predictions is left out.
    assert stored.margin < min(packaged_spreads().judged.margin, packaged_spreads().probed.margin)


def figures(spread: Spread) -> tuple[float, float, float]:
    return spread.low, spread.high, spread.covers


@pytest.fixture(scope="module")
def parts() -> dict[str, str]:
    return page_parts(classes_alone())


def test_the_page_shows_what_the_program_says(parts: dict[str, str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, part in parts.items():
        assert with_part(text, name, part, PAGE) == text, f"{name}: {AGAIN}"


def test_one_draft_is_best_where_people_measured_one(parts: dict[str, str]) -> None:
    rows = parts["drafts"].splitlines()
    best = {row.split("|")[1].strip(): row.split("|")[-2].strip() for row in rows[2:]}
    assert best["m4-max"] == "1"


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


def test_a_device_that_the_catalogue_has_not_is_told() -> None:
    with pytest.raises(InputError, match=r"made-up.*unknown hardware 'm4-mox': is m4-max"):
        Published.of([measured(["m4-mox"])], classes_alone())


def test_an_id_is_given_once(tmp_path, published: Published) -> None:
    one = published.fit[0].model_dump(exclude_none=True)
    text = yaml.safe_dump({"measurements": [one, one]})
    (tmp_path / "some.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="there twice"):
        load_measurements(tmp_path)
