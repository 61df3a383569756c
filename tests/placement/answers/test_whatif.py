"""Single changes to a cluster: all are tried, none makes it slower than noise, the best comes first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from placement.answers.prediction_range import LikelySpeed, SpeedRange
from placement.answers.study.routing_source import SyntheticSource
from placement.answers.whatif import Outcome, WhatIf, changes, in_order, rank_changes
from placement.errors import ClusterFileError, InputError
from placement.given.cluster_file import load_cluster
from placement.given.cluster_spec import ClusterSpec, LinkSpec
from placement.given.traces import GENERAL
from placement.workload import Workload
from tests.placement.shapes import small_shape
from tests.placement.spreads import spreads

SHAPE = small_shape(num_moe_layers=3, num_experts=12, top_k=2)
RAM: dict[str, Any] = {"use": "ddr5-6000-dual", "memory_bytes": "96GB"}
CABLE = LinkSpec(3e-4, 312_500_000)
TEXT = """
head: home
nodes:
  - name: home
    price: 900
    devices:
      - name: ram
        kind: ram
        memory_bytes: 238KB
        reserved_bytes: 230KB
        bandwidth_gbytes_per_s: 1
        ffn_gflops: 10
        price_per_gbyte: 4e9
  - name: attic
    devices: [{name: ram, kind: ram, memory_bytes: 24KB, bandwidth_gbytes_per_s: 1, ffn_gflops: 10}]
links: [{node: attic, round_trip_s: 0.0003, bandwidth_gbits_per_s: 1}]
"""
FOR_SALE = """
link_upgrades:
  - {name: fast card, nodes: [attic], bandwidth_gbits_per_s: 2.5, price: 60}
  - {name: quick card, nodes: [attic], round_trip_s: 0.0001, bandwidth_gbits_per_s: 0.5}
"""


def cluster(folder: Path, text: str = TEXT) -> ClusterSpec:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return load_cluster(path)


def named(folder: Path, study: list[Any], attic: list[Any], link: str = "ethernet-1g") -> ClusterSpec:
    """Boxes of the catalogue's hardware."""
    nodes = [{"name": "study", "hardware": study}, {"name": "attic", "hardware": attic}]
    links = [{"node": "attic", "hardware": link}]
    return cluster(folder, yaml.safe_dump({"head": "study", "nodes": nodes, "links": links}))


def ranked(boxes: ClusterSpec, policy: str = "hottest-first") -> WhatIf:
    size, routing = SHAPE.expert_bytes(16), SyntheticSource("g", GENERAL, GENERAL, 300, 0).load(SHAPE)
    tried = list(changes(boxes, CABLE))
    return rank_changes(SHAPE, boxes, tried, size, routing, Workload(), policy=policy, spreads=spreads())


def test_every_box_link_and_memory_is_tried_with_the_files_prices(tmp_path: Path) -> None:
    found = {change.what: change.price for change in changes(cluster(tmp_path), CABLE)}
    assert found == {
        "RAM of home-ram: 238 kB to 476 kB": pytest.approx(4 * 238000),
        "RAM of attic-ram: 24 kB to 48 kB": None,
        "Ethernet, attic: 1 to 2.36 Gbit/s": None,
        "Ethernet, attic: 1 to 9.4 Gbit/s": None,
        "one more box like home": 900,
        "one more box like attic": None,
    }


def test_links_for_sale_are_tried_and_no_others(tmp_path: Path) -> None:
    found = {change.what: change for change in changes(cluster(tmp_path, TEXT + FOR_SALE), CABLE)}
    fast, quick = (change for what, change in found.items() if "card" in what)
    assert (fast.what, fast.price) == ("fast card, attic: 1 to 2.5 Gbit/s", 60)
    assert fast.cluster.nodes[1].link == LinkSpec(3e-4, 312_500_000)
    assert (quick.what, quick.price) == ("quick card, attic: 0.3 to 0.1 ms, 1 to 0.5 Gbit/s", None)
    # What is better already stays.
    assert quick.cluster.nodes[1].link == LinkSpec(1e-4, 125_000_000)
    assert not [what for what in found if what.startswith("Ethernet")]


def test_wifi_is_offered_a_cable_and_several_links_are_upgraded_together(tmp_path: Path) -> None:
    """A layer waits for its slowest box, so that one better link of two may gain nothing."""
    shed = "  - {name: shed, devices: [{name: ram, kind: ram, memory_bytes: 20KB, "
    shed += "bandwidth_gbytes_per_s: 1, ffn_gflops: 10}]}\nlinks:"
    text = TEXT.replace("links:", shed).replace("0.0003", "0.003").replace("s: 1}]", "s: 0.2}]")
    text = text.replace("links: [", "links: [{node: shed, round_trip_s: 0.004, bandwidth_gbits_per_s: 10}, ")
    found = {change.what: change.cluster for change in changes(cluster(tmp_path, text), CABLE)}
    assert [what for what in found if what.startswith(("Ethernet", "cable"))] == [
        "Ethernet, attic: 0.2 to 2.36 Gbit/s",
        "Ethernet, attic: 0.2 to 9.4 Gbit/s",
        "cable, attic: 3 to 0.3 ms, 0.2 to 2.5 Gbit/s",
        "cable, shed: 4 to 0.3 ms, 10 to 2.5 Gbit/s",
        "cable, attic and shed: to 0.3 ms, to 2.5 Gbit/s",
    ]
    both = found["cable, attic and shed: to 0.3 ms, to 2.5 Gbit/s"]
    assert [node.link for node in both.nodes] == [None, CABLE, LinkSpec(3e-4, 1_250_000_000)]


def test_of_boxes_that_are_alike_one_is_changed(tmp_path: Path) -> None:
    twin = dataclasses.replace(cluster(tmp_path).nodes[1], name="cellar")
    boxes = cluster(tmp_path)
    boxes = dataclasses.replace(boxes, nodes=(*boxes.nodes, twin))
    found = [change.what for change in changes(boxes, CABLE)]
    assert "Ethernet, attic and cellar: to 9.4 Gbit/s" in found
    assert not [what for what in found if "cellar" in what and "attic" not in what]


@pytest.mark.parametrize(
    ("kind", "offered"),
    [
        ("ethernet-1g", ["0.941 to 2.36", "0.941 to 9.4"]),
        ("ethernet-2.5g", ["2.36 to 9.4"]),
        ("ethernet-10g", []),
    ],
)
def test_no_cable_is_offered_in_place_of_the_same(kind: str, offered: list[str], tmp_path: Path) -> None:
    boxes = named(tmp_path, [RAM], [RAM], kind)
    found = {change.what: change.cluster for change in changes(boxes, CABLE)}
    faster = [what for what in found if what.startswith("Ethernet")]
    assert faster == [f"Ethernet, attic: {rates} Gbit/s" for rates in offered]
    (before,) = (node.link for node in boxes.nodes if node.link is not None)
    for what in faster:
        link = found[what].nodes[1].link
        assert link is not None
        assert link.round_trip_s == before.round_trip_s


def test_a_cards_memory_grows_by_another_card_and_shared_memory_not_at_all(tmp_path: Path) -> None:
    boxes = named(tmp_path, ["rtx-3090", RAM, "rtx-3090", "mi60"], ["strix-halo"])
    found = {change.what: change.cluster for change in changes(boxes, CABLE)}
    assert [what for what in found if not what.startswith("Ethernet")] == [
        "RAM of study-ddr5-6000-dual: 96 GB to 192 GB",
        "one more card like study-rtx-3090: 25.8 GB",
        "one more card like study-mi60: 34.4 GB",
        "one more box like study",
        "one more box like attic",
    ]
    # The card that is bought is what the file would have it, were it named there.
    more = named(tmp_path, ["rtx-3090", RAM, "rtx-3090", "mi60", "rtx-3090"], ["strix-halo"])
    assert found["one more card like study-rtx-3090: 25.8 GB"] == more


def test_a_card_costs_what_its_memory_costs(tmp_path: Path) -> None:
    boxes = named(tmp_path, [RAM, {"use": "rtx-3090", "price_per_gbyte": 30}], [RAM])
    (card,) = (change for change in changes(boxes, CABLE) if "card" in change.what)
    assert card.price == pytest.approx(30 * 24 * 1.073741824)


def test_a_box_like_the_heads_has_its_systems_memory_and_none_of_the_heads_software(tmp_path: Path) -> None:
    boxes = named(tmp_path, ["rtx-3090", RAM], [RAM])
    found = {change.what: change.cluster for change in changes(boxes, CABLE)}
    # As a file would have it that names the same hardware in one more box.
    other = named(tmp_path, [RAM], ["rtx-3090", RAM]).nodes[1]
    assert found["one more box like study"].nodes[-1].devices == other.devices


def test_a_plan_holds_on_a_cluster_with_a_card_between_its_devices(tmp_path: Path) -> None:
    """No change that adds is slower, wherever what is added stands."""
    gpu = "{name: gpu, kind: vram, memory_bytes: 10KB, bandwidth_gbytes_per_s: 0.02, ffn_gflops: 1}"
    ram = "{name: ram, kind: ram, memory_bytes: 24KB, bandwidth_gbytes_per_s: 1, ffn_gflops: 10}"
    text = TEXT.replace("devices: [{", f"devices: [{ram}, {gpu}]\n  - name: shed\n    devices: [{{")
    text = text.replace("links: [", "links: [{node: shed, round_trip_s: 0.0003, bandwidth_gbits_per_s: 1}, ")
    result = ranked(cluster(tmp_path, text), policy="random")
    gains = {outcome.what: result.gain(outcome) for outcome in result.outcomes}
    # The plan made for it spreads more over such slow cards.
    assert gains["one more card like attic-gpu: 10 kB"] == 0
    assert all(gain is not None and gain >= 0 for gain in gains.values())


def test_a_second_head_is_reached_by_the_cable_not_by_the_heads_own_link(tmp_path: Path) -> None:
    own = "links: [{node: home, round_trip_s: 0.00001, bandwidth_gbits_per_s: 100}, "
    boxes = cluster(tmp_path, TEXT.replace("links: [", own))
    found = {change.what: change.cluster for change in changes(boxes, CABLE)}
    assert found["one more box like home"].nodes[-1].link == CABLE
    assert not [what for what in found if what.startswith(("Ethernet, home", "cable"))]


def test_a_shorter_round_trip_makes_it_faster_where_boxes_are_asked(tmp_path: Path) -> None:
    boxes = cluster(tmp_path, TEXT.replace("238KB", "231KB").replace("24KB", "40KB") + FOR_SALE)
    result = ranked(boxes)
    gains = {outcome.what.split(",")[0]: result.gain(outcome) for outcome in result.outcomes}
    assert (gains["quick card"] or 0) > (gains["fast card"] or 0) >= 0
    assert (gains["quick card"] or 0) > 0.1


def test_the_fastest_comes_first_and_memory_at_home_beats_a_link(tmp_path: Path) -> None:
    result = ranked(cluster(tmp_path), policy="least-time")
    speeds = [outcome.tokens_per_s or 0 for outcome in result.outcomes if outcome.place is not None]
    assert speeds == sorted(speeds, reverse=True)
    assert max(outcome.tokens_per_s or 0 for outcome in result.outcomes) == speeds[0]
    assert result.outcomes[0].what.startswith("RAM of home")
    gain = result.gain(result.outcomes[0])
    assert gain is not None
    assert gain > 0.1


def test_no_change_that_adds_makes_it_slower(tmp_path: Path) -> None:
    boxes = cluster(tmp_path, TEXT.replace("24KB", "40KB"))
    result = ranked(boxes, policy="random")
    gains = [result.gain(outcome) for outcome in result.outcomes]
    assert len(gains) == 6
    assert all(gain is not None and gain >= 0 for gain in gains)


def speed(tokens_per_s: float, low: float = 0.8, high: float = 1.1) -> LikelySpeed:
    return LikelySpeed(tokens_per_s, SpeedRange(low, high, 10, 0.8, "typed"))


def outcome(what: str, tokens_per_s: float | None) -> Outcome:
    return Outcome(what, None, None if tokens_per_s is None else speed(tokens_per_s))


def test_what_gains_no_more_than_the_range_has_no_place_and_is_not_in_order() -> None:
    """A gain of 25% makes up for 0.8 of a prediction."""
    gains = {"a": 12.4, "none": None, "b": 12.6, "c": 20.0, "d": 12.45, "e": 17.0, "f": 7.0}
    found = in_order(outcome("now", 10.0), [outcome(what, gain) for what, gain in gains.items()])
    assert [(o.what, o.place, o.verdict) for o in found.outcomes] == [
        ("c", 1, "faster"),
        ("e", 1, "faster"),
        ("b", 3, "faster"),
        ("a", None, "no difference we can promise"),
        ("d", None, "no difference we can promise"),
        ("f", None, "slower"),
        ("none", None, "does not fit"),
    ]
    assert [o.tokens_per_s for o in found.outcomes if o.place is None] == [12.4, 12.45, 7.0, None]


def test_what_makes_it_fit_is_faster_however_slow() -> None:
    found = in_order(outcome("now", None), [outcome("a", 1.0), outcome("b", 1.1), outcome("c", 4.0)])
    assert [(o.what, o.place) for o in found.outcomes] == [("c", 1), ("b", 2), ("a", 2)]


def test_boxes_that_nobody_probed_are_ranked_by_the_wider_range(tmp_path: Path) -> None:
    typed = cluster(tmp_path)
    result = ranked(typed)
    assert result.now.speed is not None
    assert result.now.speed.range.margin == pytest.approx(1 / 0.7 - 1)
    probed = [
        dataclasses.replace(
            node,
            devices=tuple(dataclasses.replace(each, figures_from="probed") for each in node.devices),
            link=node.link and dataclasses.replace(node.link, figures_from="probed"),
        )
        for node in typed.nodes
    ]
    result = ranked(dataclasses.replace(typed, nodes=tuple(probed)))
    margins = {o.what[:8]: o.speed.range.margin for o in (result.now, *result.outcomes) if o.speed}
    # More of what was probed counts as probed; a link that nobody has yet does not.
    assert margins["as it is"] == margins["RAM of h"] == pytest.approx(0.1)
    assert margins["Ethernet"] == pytest.approx(1 / 0.7 - 1)


def test_an_unknown_policy_is_refused_before_anything_is_planned(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="policy 'nope'"):
        ranked(cluster(tmp_path, TEXT.replace("24KB", "16KB")), policy="nope")


def test_a_change_that_makes_it_fit_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    result = ranked(cluster(tmp_path, TEXT.replace("24KB", "16KB")))
    assert result.now.tokens_per_s is None
    assert "B are missing" in result.now.note
    fits = {outcome.what[:8] for outcome in result.outcomes if outcome.tokens_per_s is not None}
    assert fits == {"RAM of h", "RAM of a", "one more"}
    assert all(result.gain(outcome) is None for outcome in result.outcomes)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("price: 900", "price: -1", r"nodes\[0\].price"),
        ("4e9", "cheap", "price_per_gbyte"),
        ("price: 60", "price: -60", r"link_upgrades\[0\].price: expected a number of at least 0"),
        ("nodes: [attic], b", "nodes: [home], b", r"link_upgrades\[0\].nodes: .*\(attic\), found 'home'"),
        ("nodes: [attic], b", "nodes: [], b", r"link_upgrades\[0\].nodes: .*\(attic\), found none"),
        ("bandwidth_gbits_per_s: 2.5, ", "", r"link_upgrades\[0\]: expected round_trip_s, bandwidth"),
        ("quick", "fast", "link_upgrades: expected unique names, found 'fast card' 2 times"),
        ("name: fast card", "title: fast card", r"link_upgrades\[0\].(name|title): "),
    ],
)
def test_prices_are_checked(tmp_path: Path, old: str, new: str, field: str) -> None:
    with pytest.raises(ClusterFileError, match=field):
        cluster(tmp_path, (TEXT + FOR_SALE).replace(old, new))
