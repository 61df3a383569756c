"""Tokens/s of whole steps: the best number of drafts, and boxes of the catalogue at any rate."""

from __future__ import annotations

import pytest

from benchmarks.studies.device_figures import ACCEPTANCE, LINKS, head_card, memory
from benchmarks.studies.homes import answer
from benchmarks.studies.step_map import FAMILIES, margin
from benchmarks.studies.two_boxes import gain, verdict
from benchmarks.studies.whole_steps import DEPTHS, EXPERT_BYTES, best_depth, shortest, workload
from placement.given.cluster_file import cluster_of
from placement.given.cluster_spec import ClusterSpec, NodeSpec
from placement.given.problem import planning_devices


def test_drafts_hold_only_behind_those_that_hold() -> None:
    first, second, third = ACCEPTANCE
    assert workload(0).tokens_out_per_step == 1
    expected = 1 + first + first * second + first * second * third
    assert workload(3).tokens_out_per_step == pytest.approx(expected)


@pytest.mark.parametrize(("name", "gbytes_per_s"), [("ddr5-6000-dual", 78.7), ("dgx-spark", 183)])
def test_memory_at_the_rate_of_an_entry_is_that_entry(name: str, gbytes_per_s: float) -> None:
    document: dict[object, object] = {
        "head": "box",
        "nodes": [{"name": "box", "hardware": [{"use": name, "memory_bytes": "128GB", "reserved_bytes": 0}]}],
    }
    (node,) = cluster_of(document, "a study").nodes
    assert memory(gbytes_per_s, 128 * 10**9) == node.devices[0]


def test_memory_at_another_rate_keeps_what_its_class_reaches_beside_it() -> None:
    slow, fast = memory(30, 10**9), memory(60, 10**9)
    assert slow.bandwidth_bytes_per_s == 30e9
    assert (fast.row_costs, fast.overheads) == (slow.row_costs, slow.overheads)
    assert fast.ffn_flops_per_s == pytest.approx(2 * slow.ffn_flops_per_s)
    assert slow.attention_bandwidth_bytes_per_s is not None
    assert fast.attention_bandwidth_bytes_per_s == pytest.approx(2 * slow.attention_bandwidth_bytes_per_s)


def test_a_card_for_the_head_holds_no_expert_and_is_left_over_its_host_link() -> None:
    home = NodeSpec("home", None, (head_card(), memory(60, 10**9)), None)
    attic = NodeSpec("attic", None, (memory(60, 10**9),), LINKS["2.5 Gbit/s"])
    card, ram, remote = planning_devices(ClusterSpec("home", (home, attic)))
    assert (card.tier.kind, card.capacity(EXPERT_BYTES)) == ("vram", 0)
    assert card.bandwidth_bytes_per_s == 453e9
    assert 0 < ram.round_trip_s < remote.round_trip_s


def test_links_of_home_networks_get_faster_one_by_one() -> None:
    trips = [each.round_trip_s for each in LINKS.values()]
    rates = [each.bandwidth_bytes_per_s for each in LINKS.values()]
    assert trips == sorted(trips, reverse=True)
    assert rates == sorted(rates)


def test_the_best_depth_is_the_fastest_and_of_equals_the_shallowest() -> None:
    flat = [workload(drafts).tokens_out_per_step for drafts in DEPTHS]
    assert best_depth(flat).drafts == 0
    assert best_depth(flat).tokens_per_s == pytest.approx(1.0)
    flat[2] /= 2
    assert best_depth(flat).drafts == 2
    assert best_depth(flat, sequences=8).tokens_per_s == pytest.approx(16.0)


def test_what_does_not_fit_has_no_speed() -> None:
    assert best_depth(shortest([])).tokens_per_s == 0
    assert shortest([[4, 1, 9, 9], [2, 3, 9, 8]]) == (2, 1, 9, 8)


def test_pooling_is_held_against_the_best_that_does_without() -> None:
    row = {"experts tokens/s": 12.0, "whole layers tokens/s": 10.0, "one box tokens/s": 6.0}
    assert gain(row) == pytest.approx(1.2)
    assert margin(row) == pytest.approx(1.2)
    assert margin(row | {"experts tokens/s": 5.0}) == pytest.approx(2.0)
    assert set(row) == {f"{family} tokens/s" for family in FAMILIES}


@pytest.mark.parametrize(
    ("times", "word"),
    [(1.3, "yes"), (1.04, "no difference to promise"), (0.96, "no difference to promise"), (0.7, "no")],
)
def test_a_gain_within_what_predictions_are_off_is_none(times: float, word: str) -> None:
    assert verdict(times) == word


def test_an_answer_names_the_slowest_link_that_pays() -> None:
    assert answer({"Wi-Fi": 0.6, "1 Gbit/s": 1.04, "2.5 Gbit/s": 1.2, "10 Gbit/s": 1.3}) == (
        "from 2.5 Gbit/s on: +20% to +30%"
    )
    assert answer({"Wi-Fi": 0.6, "10 Gbit/s": 1.3}) == "from 10 Gbit/s on: +30%"
    assert answer({"Wi-Fi": 1.04}) == "no"
