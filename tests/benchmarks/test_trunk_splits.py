"""Shared parts of a pass: no way to divide loses or invents work, and experts alone are the planner's."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.studies.trunk import best_gain, best_of_experts_s, longest_round_trip_ms, problem
from benchmarks.studies.trunk_splits import EIGHTHS, Work, distinct_experts, work_of
from placement.cost.head import head_seconds
from placement.given.cluster_spec import LinkSpec
from placement.given.problem import PlanningProblem
from placement.given.traces import GENERAL, SyntheticRouter
from placement.holders import HolderTable
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.replay.evaluate import evaluate

NO_LINK, BAD_LINK = LinkSpec(0.0, 1e18), LinkSpec(0.2, 1e6)
CABLE = LinkSpec(3e-4, 2.5e9 / 8)
TRACE = SyntheticRouter(SHAPE).trace(GENERAL, 240)
WAYS = (Work.experts_s, Work.outer_asked_s, Work.trunk_asked_s, Work.in_step_s)


@cache
def work(gbytes_per_s: float = 60, rows: int = 1, context: int = 4096) -> Work:
    return work_of(problem(gbytes_per_s, rows, context), distinct_experts(TRACE, rows))


def with_twin(one: PlanningProblem, link: LinkSpec) -> PlanningProblem:
    """The head's box and another like it behind a link."""
    (head,) = one.devices
    twin = replace(
        head,
        tier=replace(head.tier, name="twin", node="twin", worker="twin"),
        is_home=False,
        round_trip_s=link.round_trip_s,
        link_bytes_per_s=link.bandwidth_bytes_per_s,
    )
    return replace(one, devices=(head, twin))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_one_box_takes_what_the_cost_model_says(rows: int) -> None:
    found, one = work(rows=rows), problem(60, rows, 4096)
    blocks = (*found.attention, *found.dense, *found.output)
    parts_s = sum(block.count * block.alone_s for block in blocks) + found.own_s
    # Norms of queries and keys stay with what is left without a head.
    assert parts_s == pytest.approx(head_seconds(one).total_s, rel=1e-5)
    table = HolderTable.from_single(np.zeros((SHAPE.num_moe_layers, SHAPE.num_experts), np.int16))
    assert found.one_box_s() == pytest.approx(found.head_s + evaluate(one, table, TRACE).mean_s)


@pytest.mark.parametrize(
    ("gbytes_per_s", "rows", "behind"),
    [(25, 1, 0.001), (60, 1, 0.001), (60, 2, 0.02), (60, 4, 0.02), (220, 4, 0.07)],
)
def test_experts_alone_take_what_copies_on_both_boxes_do(
    gbytes_per_s: float, rows: int, behind: float
) -> None:
    pair = with_twin(problem(gbytes_per_s, rows, 4096), CABLE)
    both = HolderTable.from_masks(np.ones((2, SHAPE.num_moe_layers, SHAPE.num_experts), np.bool_))
    replayed_s = head_seconds(pair).total_s + evaluate(pair, both, TRACE).mean_s
    found_s = work(gbytes_per_s, rows).experts_s(CABLE)
    # The dispatcher does not find the best choice in every layer.
    assert found_s <= replayed_s * (1 + 1e-9)
    assert found_s == pytest.approx(replayed_s, rel=behind)


@pytest.mark.parametrize(
    ("gbytes_per_s", "alone", "pooled"), [(25, 3.6, 4.5), (60, 8.5, 10.1), (220, 32.3, 32.3)]
)
def test_a_second_equal_box_gains_what_the_planner_says(
    gbytes_per_s: float, alone: float, pooled: float
) -> None:
    found = work(gbytes_per_s)
    assert 1 / found.one_box_s() == pytest.approx(alone, abs=0.05)
    assert 1 / best_of_experts_s(found, CABLE) == pytest.approx(pooled, abs=0.06)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_link_that_costs_nothing_halves_the_trunk_and_a_bad_one_changes_nothing(rows: int) -> None:
    found = work(rows=rows)
    halved_s = (found.head_s - found.own_s) / 2 + found.own_s
    for way in (Work.trunk_asked_s, Work.in_step_s):
        trunk_s = way(found, NO_LINK) - (found.experts_s(NO_LINK) - found.head_s)
        assert trunk_s == pytest.approx(halved_s, rel=1e-3)
    for way in WAYS:
        assert way(found, BAD_LINK) == pytest.approx(found.one_box_s())


def test_attention_is_divided_by_its_heads_of_keys_and_values() -> None:
    for block in work(context=32768).attention:
        assert block.part_s[0] == 0
        assert np.diff(block.part_s) == pytest.approx(block.alone_s / EIGHTHS, rel=1e-3)


def test_every_way_gains_or_stays_where_links_get_better() -> None:
    links = [
        LinkSpec(trip, gbits * 1e9 / 8) for trip, gbits in ((3e-3, 0.5), (3e-4, 1), (3e-4, 10), (5e-5, 10))
    ]
    for way in WAYS:
        seconds = [way(work(rows=2), link) for link in links]
        assert seconds == sorted(seconds, reverse=True)
        # Whatever is divided, two boxes are not faster than two.
        assert seconds[-1] > work(rows=2).one_box_s() / 2


def test_whole_layers_gain_a_single_text_nothing() -> None:
    found = work()
    assert found.whole_layers_s(CABLE) > found.one_box_s()
    assert found.whole_layers_s(CABLE) == pytest.approx(found.one_box_s(), rel=0.01)


def test_distinct_experts_are_those_of_successive_tokens() -> None:
    trace = np.array([[[0, 1], [2, 3]], [[1, 0], [4, 5]], [[6, 7], [6, 7]]])
    assert distinct_experts(trace, 1) == {2: 1.0}
    assert distinct_experts(trace, 2) == {2: 0.5, 4: 0.5}
    assert distinct_experts(trace, 3) == {4: 0.5, 6: 0.5}


def test_the_longest_round_trip_is_where_the_gain_is_15_percent() -> None:
    trip_ms = longest_round_trip_ms(work(), CABLE.bandwidth_bytes_per_s)
    assert 0.3 < trip_ms < 1
    at = best_gain(work(), LinkSpec(trip_ms / 1e3, CABLE.bandwidth_bytes_per_s))
    assert at == pytest.approx(0.15, abs=0.01)
    assert longest_round_trip_ms(work(220, 4), 1e8) == 0
