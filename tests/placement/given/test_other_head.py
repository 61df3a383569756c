"""A cluster as a head on another of its devices would see it."""

from __future__ import annotations

import dataclasses

import pytest

from placement.errors import InputError
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec, Overheads
from placement.given.other_head import HeadPlace, as_planned, find_head, head_place, head_places, with_head
from placement.given.problem import planning_devices
from placement.plan import Plan, PlannedTier
from tests.orchestrator.random_plan import random_plan
from tests.placement.shapes import small_shape

SOFTWARE = Overheads(message_s=1e-5, layer_s=2e-5, moe_layer_s=3e-5, row_s=4e-6, pass_s=5e-4, draft_s=6e-4)
RAM = DeviceSpec("ram", "ram", "cpu", 10**9, 0, 50e9, 5e11)
SSD = DeviceSpec("ssd", "disk", "cpu", 10**9, 0, 5e9, 5e11)
GPU = DeviceSpec("gpu", "vram", "cuda:0", 10**9, 0, 9e11, 6e13, overheads=Overheads(request_s=1e-5))


def node(name: str, *devices: DeviceSpec, ms: float | None = None, gbits: float = 1.0) -> NodeSpec:
    return NodeSpec(name, None, devices, None if ms is None else LinkSpec(ms / 1e3, gbits * 1e9 / 8))


CLUSTER = ClusterSpec(
    "study",
    (
        node("study", dataclasses.replace(RAM, overheads=SOFTWARE), GPU, SSD),
        node("den", RAM, ms=0.2, gbits=10),
        node("attic", SSD, RAM, ms=3, gbits=0.5),
        node("loft", RAM, ms=3, gbits=1),
        node("cellar", SSD, ms=0.2),
    ),
)


def links(cluster: ClusterSpec) -> dict[str, tuple[float, float] | None]:
    """Milliseconds and Gbit/s."""
    return {
        each.name: each.link
        and (round(1e3 * each.link.round_trip_s, 9), each.link.bandwidth_bytes_per_s * 8 / 1e9)
        for each in cluster.nodes
    }


def test_every_ram_and_gpu_is_a_place_boxes_that_are_alike_once_and_disks_never() -> None:
    assert {str(place): number for place, number in head_places(CLUSTER).items()} == {
        "study/ram": 1,
        "study/gpu": 1,
        "den/ram": 1,
        "attic/ram": 1,
        "loft/ram": 1,
    }
    twin = dataclasses.replace(CLUSTER.nodes[1], name="twin")
    more = dataclasses.replace(CLUSTER, nodes=(*CLUSTER.nodes, twin))
    assert head_places(more)[HeadPlace("den", "ram")] == 2


@pytest.mark.parametrize(
    ("text", "place"), [("den", "den/ram"), ("attic", "attic/ram"), ("study/gpu", "study/gpu")]
)
def test_a_place_is_named_by_its_node_or_by_node_and_device(text: str, place: str) -> None:
    assert str(find_head(CLUSTER, text)) == place


@pytest.mark.parametrize("text", ["barn", "", "study/", "study/ssd", "cellar", "den/ram/0", "[red]x"])
def test_a_place_that_is_none_names_those_there_are(text: str) -> None:
    with pytest.raises(InputError, match=r"--head: .*(study|den/ram|cellar)"):
        find_head(CLUSTER, text)


def test_links_to_another_box_have_both_ends_and_the_slower_rate() -> None:
    assert links(with_head(CLUSTER, HeadPlace("den", "ram"))) == {
        "study": (0.2, 10),
        "den": None,
        "attic": (3, 0.5),
        "loft": (3, 1),
        "cellar": (0.2, 1),
    }
    # Twice over the air.
    assert links(with_head(CLUSTER, HeadPlace("loft", "ram")))["attic"] == (5.8, 0.5)


def test_what_nobody_measured_from_another_head_counts_as_typed() -> None:
    probed = dataclasses.replace(
        CLUSTER,
        nodes=tuple(
            dataclasses.replace(
                each,
                devices=tuple(dataclasses.replace(d, figures_from="probed") for d in each.devices),
                link=each.link and dataclasses.replace(each.link, figures_from="probed"),
            )
            for each in CLUSTER.nodes
        ),
    )
    moved = with_head(probed, HeadPlace("den", "ram"))
    # Between the old head and the new one the link is the same; the others' are inferred.
    known = {each.name: each.link and each.link.figures_from for each in moved.nodes}
    assert known == {"study": "probed", "den": None, "attic": "typed", "loft": "typed", "cellar": "typed"}
    assert {
        str(HeadPlace(each.name, d.name))
        for each in moved.nodes
        for d in each.devices
        if d.figures_from == "typed"
    } == {"den/ram"}
    sources = {d.tier.name: d.figures_from for d in planning_devices(moved)}
    assert sources["head"] == sources["loft-ram"] == "typed"
    assert sources["study-ram"] == "probed"
    # On a card of the same box the software is copied, too; all links are as they were.
    moved = with_head(probed, HeadPlace("study", "gpu"))
    assert moved.head_node.devices[0].figures_from == "typed"
    assert {each.link.figures_from for each in moved.nodes if each.link} == {"probed"}


def test_another_device_of_the_heads_box_keeps_all_links() -> None:
    assert links(with_head(CLUSTER, HeadPlace("study", "gpu"))) == links(CLUSTER)
    assert with_head(CLUSTER, HeadPlace("study", "ram")) is CLUSTER


def test_the_chosen_device_comes_first_and_holds_the_heads_tier() -> None:
    moved = with_head(CLUSTER, HeadPlace("attic", "ram"))
    assert head_place(moved) == HeadPlace("attic", "ram")
    names = [device.tier.name for device in planning_devices(moved)]
    before, after = (
        ["study-ram", "study-gpu", "study-ssd", "den-ram"],
        ["attic-ssd", "loft-ram", "cellar-ssd"],
    )
    assert names == [*before, "head", *after]


def test_the_heads_software_goes_with_it_and_leaves_the_device_it_was_on() -> None:
    moved = with_head(CLUSTER, HeadPlace("den", "ram"))
    assert moved.head_node.devices[0].overheads == SOFTWARE
    left = moved.nodes[0].devices[0].overheads
    assert (left.message_s, left.pass_s, left.draft_s) == (0, 0, 0)


def test_a_card_as_head_leaves_out_the_processors_part_and_asks_ram_over_the_host_link() -> None:
    gpu = with_head(CLUSTER, HeadPlace("study", "gpu")).head_node.devices[0]
    assert gpu.name == "gpu"
    assert gpu.overheads == dataclasses.replace(SOFTWARE, layer_s=0, row_s=0)
    assert gpu.host_link_round_trip_s == GPU.overheads.request_s
    back = with_head(with_head(CLUSTER, HeadPlace("study", "gpu")), HeadPlace("study", "ram"))
    assert back.head_node.devices[1].overheads.request_s == GPU.overheads.request_s
    assert back.head_node.devices[1].host_link_round_trip_s == 0


def plan_with(*tiers: tuple[str, str, str, str]) -> Plan:
    """Of name, node, torch device and kind."""
    plan = random_plan(small_shape(), len(tiers) - 1, seed=0)
    made = tuple(PlannedTier(name, at, device, kind, 10**9) for name, at, device, kind in tiers)
    return dataclasses.replace(plan, tiers=made)


def test_a_plan_says_where_its_head_is() -> None:
    den = plan_with(("study-ram", "study", "cpu", "ram"), ("head", "den", "cpu", "ram"))
    assert head_place(as_planned(CLUSTER, den)) == HeadPlace("den", "ram")
    gpu = plan_with(("head", "study", "cuda:0", "vram"), ("study-ram", "study", "cpu", "ram"))
    assert head_place(as_planned(CLUSTER, gpu)) == HeadPlace("study", "gpu")
    own = plan_with(("head", "study", "cpu", "ram"), ("den-ram", "den", "cpu", "ram"))
    assert as_planned(CLUSTER, own) is CLUSTER
    unknown = plan_with(("head", "barn", "cpu", "ram"), ("den-ram", "den", "cpu", "ram"))
    assert as_planned(CLUSTER, unknown) is CLUSTER
