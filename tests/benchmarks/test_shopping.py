"""What the shopping study answers to given speeds, and what its files must say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.studies.shopping.__main__ import PAGE
from benchmarks.studies.shopping.answer import Planned, answer, verdict_of
from benchmarks.studies.shopping.page import section
from benchmarks.studies.shopping.questions import Option, Question, load_question, load_questions
from benchmarks.studies.shopping.speeds import Speed, Speeds, speeds_on
from placement.answers.prediction_range import LikelySpeed, SpeedRange
from placement.errors import ClusterFileError, StudyFileError
from placement.given.cluster_file import cluster_of
from placement.given.other_head import HeadPlace

WITHIN = SpeedRange(0.75, 1.3, 100, 0.8, "catalogue")
CONTEXTS = (4096, 32768)
BOX = {"head": "box", "nodes": [{"name": "box", "hardware": ["strix-halo"]}]}
SMALL_BOX = {"head": "box", "nodes": [{"name": "box", "hardware": ["rtx-4090"]}]}


def planned(name: str, *tokens_per_s: float | None, now: bool = False) -> Planned:
    return Planned(name, now, tuple(map(speed, tokens_per_s)))


def speed(tokens_per_s: float | None) -> Speed | None:
    return None if tokens_per_s is None else Speed(LikelySpeed(tokens_per_s, WITHIN), 1, 0.0)


def test_an_option_within_the_range_of_now_is_not_recommended() -> None:
    options = [planned("now", 10, now=True), planned("more", 12.9)]
    verdict = verdict_of(options, 0)
    assert (verdict.take, verdict.same) == ((), (1,))
    assert answer(options, CONTEXTS[:1]).startswith("Keep what you have.")
    assert "no difference we can promise: more" in answer(options, CONTEXTS[:1])


def test_what_the_best_does_not_beat_is_taken_only_if_it_beats_now() -> None:
    options = [planned("now", 10, now=True), planned("a", 14), planned("b", 13.5), planned("c", 12)]
    verdict = verdict_of(options, 0)
    assert (verdict.take, verdict.same) == ((1, 2), (3,))
    assert answer(options, CONTEXTS[:1]).startswith(
        "A (1.40 times as fast) or b (1.35 times as fast): no difference we can promise between them."
    )


def test_every_option_but_the_present_one_is_in_one_group() -> None:
    options = [
        planned("now", 10, now=True),
        *(planned(f"{figure}", figure) for figure in (30, 18, 11, 5, 25)),
        planned("none", None),
    ]
    verdict = verdict_of(options, 0)
    assert verdict.take == (1, 5)
    assert (verdict.faster, verdict.same, verdict.slower, verdict.no_room) == ((2,), (3,), (4,), (6,))


def test_where_nothing_is_there_now_speeds_are_told() -> None:
    options = [planned("a", 20, 18), planned("b", 10, 9)]
    assert answer(options, CONTEXTS) == (
        "A (20.0 tokens/s, 18.0 at 32,768). Slower: b (10.0 tokens/s, 9.00 at 32,768)."
    )


def test_without_room_now_whatever_has_room_is_better() -> None:
    options = [planned("now", None, now=True), planned("a", 5)]
    assert answer(options, CONTEXTS[:1]) == "A (5.00 tokens/s). No room for the model: now."
    assert answer([planned("a", None), planned("b", None)], CONTEXTS[:1]).startswith("None of these")


def test_contexts_with_other_answers_have_sentences_of_their_own() -> None:
    options = [planned("now", 10, 10, now=True), planned("a", 20, 12)]
    assert answer(options, CONTEXTS) == (
        "At 4,096: A (2.0 times as fast). "
        "At 32,768: Keep what you have. From now, no difference we can promise: a (1.20 times as fast)."
    )


@pytest.mark.parametrize("price", [None, 250.0])
def test_the_gain_for_100_is_shown_where_the_file_has_prices(price: float | None) -> None:
    cluster = cluster_of(dict(BOX), "box")
    options = (Option("now", cluster, is_now=True), Option("more", cluster, price=price))
    found = [Speeds((speed(10), speed(10))), Speeds((speed(15), None), "no room for keys")]
    text = section(1, Question("file.yaml", "What?", "What is better?", options), found)
    assert ("gain for 100" in text) == (price is not None)
    assert ("| 250 | +20.0% |" in text) == (price is not None)
    assert "15.0 (11 to 20), 1 draft | no room" in text
    assert "more. no room for keys" in text


def test_a_head_that_was_moved_is_named_below_the_table() -> None:
    cluster = cluster_of(dict(BOX), "box")
    found = [Speeds((speed(10), speed(9)), head=HeadPlace("den", "ram")), Speeds((speed(8), speed(7)))]
    text = section(
        1, Question("file.yaml", "What?", "Where?", (Option("a", cluster), Option("b", cluster))), found
    )
    assert "The head of a is best on den/ram" in text
    assert "The head of b" not in text


def test_the_ten_questions_are_read_and_on_the_page() -> None:
    questions = load_questions()
    page = PAGE.read_text(encoding="utf-8")
    assert len(questions) == 10
    for question in questions:
        assert f". {question.title}\n" in page
        assert all(option.name in page for option in question.options)


@pytest.mark.parametrize(
    ("options", "kind", "named"),
    [
        ([{"name": "a", "cluster": BOX}], StudyFileError, "options: expected two or more"),
        ([{"name": "a", "cluster": BOX, "now": True}] * 2, StudyFileError, "now: true"),
        ([{"name": "a", "cluster": BOX}] * 2, StudyFileError, "name of its own"),
        (
            [{"name": "a", "cluster": BOX}, {"name": "b", "cluster": {}}],
            ClusterFileError,
            "options[1].cluster",
        ),
        ([{"name": "a", "cluster": BOX}, {"name": "b", "cost": 3}], StudyFileError, "cost"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(
    tmp_path: Path, options: list[object], kind: type[Exception], named: str
) -> None:
    path = tmp_path / "question.yaml"
    path.write_text(yaml.safe_dump({"title": "What?", "question": "What?", "options": options}))
    with pytest.raises(kind) as caught:
        load_question(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.long
def test_the_head_goes_to_the_faster_box_unless_it_is_kept() -> None:
    slow = {"name": "slow", "hardware": [{"use": "ddr4-3200-dual", "memory_bytes": "32GB"}]}
    boxes = {
        "head": "slow",
        "nodes": [slow, {"name": "fast", "hardware": ["strix-halo"]}],
        "links": [{"node": "fast", "hardware": "ethernet-2.5g"}],
    }
    cluster = cluster_of(dict(boxes), "boxes")
    moved, kept = (speeds_on(cluster, keep_head=keep) for keep in (False, True))
    assert (str(moved.head), kept.head) == ("fast/strix-halo", None)
    faster, slower = moved.by_context[0], kept.by_context[0]
    assert faster is not None
    assert slower is not None
    assert faster.beats(slower)


def test_a_box_without_room_says_why() -> None:
    found = speeds_on(cluster_of(dict(SMALL_BOX), "box"), keep_head=False)
    assert found.by_context == (None, None)
    assert "GB" in found.note


def test_a_box_with_room_is_slower_with_a_longer_text() -> None:
    found = speeds_on(cluster_of(dict(BOX), "box"), keep_head=False)
    short, long = found.by_context
    assert short is not None
    assert long is not None
    assert short.tokens_per_s > long.tokens_per_s > 0
    assert short.likely.low < short.tokens_per_s < short.likely.high
    assert found.head is None
    assert not found.note
