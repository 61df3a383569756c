"""Hardware of a cluster file that is named: what it becomes, what is typed beside it, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from placement.errors import ClusterFileError, PlanDoesNotFit
from placement.given.cluster_file import load_cluster
from placement.given.cluster_spec import ClusterSpec, DeviceSpec
from placement.given.other_head import HeadPlace, with_head
from placement.given.problem import planning_devices
from placement.hardware.catalogue import packaged_catalogue

SLOW = {"bandwidth_gbytes_per_s": 20}
CARD: dict[str, Any] = {"use": "rtx-3090"}
RAM: dict[str, Any] = {"use": "ddr5-6000-dual", "memory_bytes": "96GB"}


def load(
    tmp_path: Path, study: list[Any], attic: list[Any] | None = None, link: dict[str, Any] | None = None
) -> ClusterSpec:
    nodes: list[dict[str, Any]] = [{"name": "study", "hardware": study}]
    document: dict[str, Any] = {"head": "study", "nodes": nodes}
    if attic is not None:
        nodes.append({"name": "attic", "hardware": attic})
        document["links"] = [{"node": "attic", **(link or {"hardware": "ethernet-2.5g"})}]
    path = tmp_path / "boxes.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_cluster(path)


def devices(tmp_path: Path, study: list[Any]) -> tuple[DeviceSpec, ...]:
    return load(tmp_path, study).nodes[0].devices


def test_names_become_devices_in_their_order(tmp_path: Path) -> None:
    gpu, ram, disk = devices(tmp_path, ["rtx-4090", RAM, {"use": "nvme-gen4", "memory_bytes": "2TB"}])
    assert (gpu.kind, ram.kind, disk.kind) == ("vram", "ram", "disk")
    assert [gpu.name, ram.name, disk.name] == ["rtx-4090", "ddr5-6000-dual", "nvme-gen4"]
    assert gpu.memory_bytes == 24 * 2**30
    assert ram.memory_bytes == 96 * 10**9
    assert 0 < gpu.reserved_bytes < gpu.memory_bytes


def test_typed_figures_win(tmp_path: Path) -> None:
    typed = {
        "name": "mine",
        "reserved_bytes": "3GB",
        "bandwidth_gbytes_per_s": 81,
        "price_per_gbyte": 3,
        "overheads": {"request_s": 2e-4},
    }
    (usual,) = devices(tmp_path, [RAM])
    (ram,) = devices(tmp_path, [RAM | typed])
    assert (ram.name, ram.reserved_bytes, ram.bandwidth_bytes_per_s) == ("mine", 3 * 10**9, 81e9)
    assert (usual.price_per_gbyte, ram.price_per_gbyte) == (None, 3)
    assert ram.ffn_flops_per_s == usual.ffn_flops_per_s
    # Of the software too, what is not typed stays.
    assert ram.overheads.request_s == 2e-4
    assert ram.overheads.layer_s == usual.overheads.layer_s


def test_two_of_a_kind_have_names_and_cards_of_their_own(tmp_path: Path) -> None:
    found = devices(tmp_path, ["rtx-3090", "rx-7900-xtx", "rtx-3090", "rx-7900-xtx", "mi60"])
    names = ["rtx-3090", "rx-7900-xtx", "rtx-3090-2", "rx-7900-xtx-2", "mi60"]
    assert [device.name for device in found] == names
    # Each maker's driver counts its own cards.
    assert [device.torch_device for device in found] == ["cuda", "hip", "cuda:1", "hip:1", "hip:2"]


@pytest.mark.parametrize(
    ("study", "found"),
    [
        ([{"use": "rtx-3090", "torch_device": "cuda:0"}, "rtx-3090"], ["cuda:0", "cuda:1"]),
        (["rtx-3090", {"use": "rtx-3090", "torch_device": "cuda"}], ["cuda:1", "cuda"]),
        ([{"use": "rtx-3090", "torch_device": "cuda:1"}, "rtx-3090"], ["cuda:1", "cuda"]),
        ([{"use": "mi60", "torch_device": "hip:0"}, "mi60", "rtx-3090"], ["hip:0", "hip:1", "cuda"]),
    ],
)
def test_no_card_is_given_a_torch_device_that_is_typed_for_another(
    study: list[Any], found: list[str], tmp_path: Path
) -> None:
    assert [device.torch_device for device in devices(tmp_path, study)] == found


def test_software_of_the_head_counts_on_its_first_device_alone(tmp_path: Path) -> None:
    cluster = load(tmp_path, ["rtx-3090", "rtx-3090"], ["rtx-3090"])
    first, second = cluster.nodes[0].devices
    (other,) = cluster.nodes[1].devices
    assert first.overheads.pass_s > 0
    assert second.overheads.pass_s == other.overheads.pass_s == 0
    assert second.host_link_round_trip_s == other.host_link_round_trip_s == 0


def test_a_card_that_a_processor_asks_takes_the_round_trip_over_the_host_link(tmp_path: Path) -> None:
    cluster = load(tmp_path, [RAM, "rtx-3090"], ["rtx-3090", RAM])
    round_trip_s = devices(tmp_path, ["rtx-3090"])[0].host_link_round_trip_s
    assert round_trip_s > 0
    assert cluster.nodes[0].devices[1].overheads.request_s == round_trip_s
    assert cluster.nodes[1].devices[0].overheads.request_s == round_trip_s
    # Behind a card that is the head, the way there counts already.
    assert devices(tmp_path, ["rtx-3090", "rtx-3090"])[1].overheads.request_s == 0


def test_a_head_that_is_moved_to_a_card_costs_what_it_costs_where_the_file_has_it_there(
    tmp_path: Path,
) -> None:
    named = load(tmp_path, ["rtx-3090", RAM], [RAM]).head_node.devices[0]
    moved = with_head(load(tmp_path, [RAM], ["rtx-3090", RAM]), HeadPlace("attic", "rtx-3090"))
    assert dataclasses.replace(moved.head_node.devices[0], name=named.name) == named
    twins = load(tmp_path, ["rtx-3090", "rtx-3090", RAM], [RAM])
    swapped = with_head(twins, HeadPlace("study", "rtx-3090-2")).head_node.devices
    first, second, ram = twins.head_node.devices
    assert dataclasses.replace(swapped[0], name=first.name, torch_device=first.torch_device) == first
    assert dataclasses.replace(swapped[1], name=second.name, torch_device=second.torch_device) == second
    assert swapped[2] == ram


def test_of_little_memory_half_is_for_experts(tmp_path: Path) -> None:
    (ram,) = devices(tmp_path, [RAM | {"memory_bytes": "4GB"}])
    assert ram.budget_bytes == 2 * 10**9


def test_the_system_keeps_its_share_of_the_device_that_the_head_computes_on(tmp_path: Path) -> None:
    """A figure that somebody typed in full may be there for the head already."""
    head_bytes, attic = 5 * 10**9, RAM | {"reserved_bytes": "9GB"}
    cluster = load(tmp_path, [RAM], [attic])
    reserved = [node.devices[0].reserved_bytes for node in cluster.nodes]
    budgets = [device.tier.budget_bytes for device in planning_devices(cluster, head_bytes)]
    assert budgets == [96 * 10**9 - head_bytes - reserved[0], 96 * 10**9 - 9 * 10**9]
    # Wherever the head is put.
    moved = with_head(cluster, HeadPlace("attic", RAM["use"]))
    budgets = [device.tier.budget_bytes for device in planning_devices(moved, head_bytes)]
    assert budgets == [96 * 10**9 - reserved[0], 96 * 10**9 - 9 * 10**9 - head_bytes]
    typed = [
        dataclasses.replace(node, devices=(dataclasses.replace(node.devices[0], hardware=None),))
        for node in cluster.nodes
    ]
    cluster = dataclasses.replace(cluster, nodes=tuple(typed))
    budgets = [device.tier.budget_bytes for device in planning_devices(cluster, head_bytes)]
    assert budgets == [96 * 10**9 - max(head_bytes, reserved[0]), 96 * 10**9 - 9 * 10**9]


def test_a_head_without_room_beside_the_system_is_refused_with_both(tmp_path: Path) -> None:
    cluster = load(tmp_path, [RAM | {"memory_bytes": "8GB", "reserved_bytes": "3GB"}])
    assert planning_devices(cluster, 5 * 10**9)[0].tier.budget_bytes == 0
    with pytest.raises(
        PlanDoesNotFit, match=r"take 6.0 GB, and the system 3.0 GB: together 1.0 GB more than"
    ):
        planning_devices(cluster, 6 * 10**9)


def test_a_link_may_name_its_kind(tmp_path: Path) -> None:
    entry = packaged_catalogue().entry("ethernet-2.5g")
    usual = load(tmp_path, ["rtx-3090"], [RAM]).nodes[1].link
    assert usual is not None
    assert 0.25e9 < usual.bandwidth_bytes_per_s < 2.5e9 / 8
    measured = {"hardware": entry.name, "round_trip_s": 0.0007}
    link = load(tmp_path, ["rtx-3090"], [RAM], measured).nodes[1].link
    assert link is not None
    assert (link.round_trip_s, link.bandwidth_bytes_per_s) == (0.0007, usual.bandwidth_bytes_per_s)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (["rtx4090"], r"nodes\[0\].hardware\[0\].use: unknown hardware 'rtx4090': is rtx-4090 or .* meant"),
        (["ryzen-ai-max-395"], r"hardware\[0\].use: unknown hardware .*: is strix-halo .*meant"),
        (["GB10"], r"hardware\[0\].use: unknown hardware 'GB10': is dgx-spark .*meant"),
        (["toaster"], r"hardware\[0\].use: unknown hardware 'toaster': `potluck hardware` lists"),
        (["rtx-4090", 7], r"hardware\[1\]: expected a mapping with use, name"),
        (["rtx-4090", {"memory_bytes": "1GB"}], r"hardware\[1\].use: expected a value"),
        (["ddr5-6000-dual"], r"hardware\[0\]: ddr5-6000-dual is sold in several sizes: .*memory_bytes: 64GB"),
        (["m4-max"], r"hardware\[0\]: m4-max is sold in several sizes"),
        (["wifi-6"], r"hardware\[0\]: wifi-6 is a link: name it in links"),
        ([RAM | {"memory_bytes": 96}], r"hardware\[0\].memory_bytes: .*is 96GB meant"),
        ([RAM | {"reserved_bytes": "97GB"}], r"hardware\[0\].reserved_bytes: expected at most memory_bytes"),
        (
            [RAM | {"host_link_gbytes_per_s": 20}],
            r"hardware\[0\].host_link_gbytes_per_s: expected on devices",
        ),
        ([RAM, CARD | {"overheads": {"pass_s": 1}}], r"hardware\[1\].overheads.pass_s: expected on the"),
        ([RAM, RAM], r"nodes\[0\].hardware: expected a box's RAM once, found ddr5-6000-dual and"),
        ([CARD | {"name": "a"}, CARD | {"name": "a"}], r"nodes\[0\].hardware: expected unique names"),
        ([{"name": "ddr5-6000-dual", "memory_bytes": "9GB"}], r"hardware\[0\]: .*write use: ddr5-6000-dual"),
        ([{"use": ["rtx-4090"]}], r"hardware\[0\].use: expected one name, without brackets: rtx-4090"),
        ([{"use": "m4-max", "memory": "9GB"}], r"hardware\[0\].memory: unknown key \(is memory_bytes meant"),
        ([RAM | {"speed": 1}], r"hardware\[0\].speed: unknown key; expected use, name"),
    ],
)
def test_a_wrong_item_is_refused_by_its_field(study: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterFileError, match=f"boxes.yaml: .*{message}") as caught:
        devices(tmp_path, study)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ({"hardware": "ethernet-3g"}, r"links\[0\].hardware: unknown hardware 'ethernet-3g': is ethernet-"),
        ({"hardware": ["wifi-6"]}, r"links\[0\].hardware: expected one name, without brackets: wifi-6"),
        ({"hardware": "rtx-4090"}, r"links\[0\].hardware: rtx-4090 is no link"),
        ({"round_trip_s": 0.001}, r"links\[0\].bandwidth_gbits_per_s: expected a value, or a kind of link"),
    ],
)
def test_a_wrong_link_is_refused_by_its_field(link: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterFileError, match=f"boxes.yaml: {message}"):
        load(tmp_path, ["rtx-3090"], [RAM], link)


def test_devices_and_hardware_of_one_node_are_refused(tmp_path: Path) -> None:
    typed = {
        "name": "ram",
        "kind": "ram",
        "memory_bytes": "9GB",
        "bandwidth_gbytes_per_s": 9,
        "ffn_gflops": 9,
    }
    path = tmp_path / "boxes.yaml"
    node = {"name": "study", "devices": [typed], "hardware": ["rtx-4090"]}
    path.write_text(yaml.safe_dump({"head": "study", "nodes": [node]}))
    with pytest.raises(ClusterFileError, match=r"nodes\[0\]: expected devices or hardware, found both"):
        load_cluster(path)


def test_what_could_be_bought_for_links_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "boxes.yaml"
    upgrade: dict[str, Any] = {"name": "a cable", "nodes": ["attic"], "hardware": "ethernet-10g", "price": 90}
    nodes = [{"name": "study", "hardware": ["rtx-4090"]}, {"name": "attic", "hardware": [RAM]}]
    document = {"head": "study", "nodes": nodes, "links": [{"node": "attic", "hardware": "wifi-6"}]}
    path.write_text(yaml.safe_dump(document | {"link_upgrades": [upgrade]}))
    cluster = load_cluster(path)
    before, (bought,) = cluster.nodes[1].link, cluster.link_upgrades
    assert before is not None
    after = bought.of(before)
    assert bought.price == 90
    assert after.round_trip_s < before.round_trip_s
    assert after.bandwidth_bytes_per_s > 5 * before.bandwidth_bytes_per_s
    path.write_text(yaml.safe_dump(document | {"link_upgrades": [upgrade | {"hardware": "p40"}]}))
    with pytest.raises(ClusterFileError, match=r"link_upgrades\[0\].hardware: p40 is no link"):
        load_cluster(path)


def test_keys_and_values_are_read_no_faster_than_the_memory_they_lie_in(tmp_path: Path) -> None:
    path = tmp_path / "boxes.yaml"
    path.write_text(yaml.safe_dump({"head": "a", "nodes": [{"name": "a", "hardware": [RAM | SLOW]}]}))
    (device,) = load_cluster(path).nodes[0].devices
    assert device.bandwidth_bytes_per_s == device.attention_bandwidth_bytes_per_s == 20e9
