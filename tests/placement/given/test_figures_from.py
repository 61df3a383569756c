"""Who says what a device reaches is carried from the file to what is planned with."""

from __future__ import annotations

from pathlib import Path

import pytest

from placement.given.cluster_file import load_cluster, load_known_cluster
from placement.given.cluster_spec import ClusterSpec, FiguresFrom, least_known
from placement.given.other_head import HeadPlace, with_head
from placement.given.probe import probe_path, write_probe
from placement.given.problem import planning_devices
from tests.placement.given.probes import probe

TYPED = "devices: [{name: ram, kind: ram, memory_bytes: 64GB, bandwidth_gbytes_per_s: 50, ffn_gflops: 400}]"
NAMED = "hardware: [rtx-4090, {use: ddr5-6000-dual, memory_bytes: 64GB, bandwidth_gbytes_per_s: 70}]"


def cluster(folder: Path, desk: str, attic: str, link: str | None) -> Path:
    path = folder / "cluster.yaml"
    nodes = f"head: desk\nnodes:\n  - {{name: desk, {desk}}}\n  - {{name: attic, {attic}}}\n"
    path.write_text(nodes + (f"links: [{{node: attic, {link}}}]\n" if link else ""))
    return path


def sources(boxes: ClusterSpec) -> dict[str, FiguresFrom]:
    return {device.tier.name: device.figures_from for device in planning_devices(boxes)}


def test_hardware_that_is_named_is_the_catalogues_and_what_is_typed_the_users(tmp_path: Path) -> None:
    boxes = load_cluster(cluster(tmp_path, NAMED, TYPED, "hardware: ethernet-2.5g"))
    assert sources(boxes) == {
        "head": "catalogue",
        "desk-ddr5-6000-dual": "catalogue",
        "attic-ram": "typed",
    }
    assert boxes.nodes[1].link is not None
    assert boxes.nodes[1].link.figures_from == "catalogue"


def test_a_box_is_known_as_well_as_the_link_to_it(tmp_path: Path) -> None:
    typed = "round_trip_s: 0.0003, bandwidth_gbits_per_s: 2.5"
    boxes = load_cluster(cluster(tmp_path, TYPED, NAMED, typed))
    assert set(sources(boxes).values()) == {"typed"}


def test_what_nobody_typed_is_the_probes(tmp_path: Path) -> None:
    address = "address: 10.0.0."
    path = cluster(tmp_path, f"{address}1", f"{address}2", None)
    write_probe(probe(), probe_path(path))
    assert set(sources(load_known_cluster(path)).values()) == {"probed"}
    path = cluster(tmp_path, f"{address}1", f"{address}2, {TYPED}", None)
    assert {
        name: source for name, source in sources(load_known_cluster(path)).items() if "attic" in name
    } == {"attic-ram": "typed"}


def test_of_another_head_only_the_link_to_the_old_one_is_known_as_before(tmp_path: Path) -> None:
    path = cluster(tmp_path, NAMED, NAMED, "hardware: ethernet-2.5g")
    third = f"  - {{name: shed, {NAMED}}}\nlinks: [{{node: shed, hardware: ethernet-1g}}, "
    path.write_text(path.read_text().replace("links: [", third))
    moved = with_head(load_cluster(path), HeadPlace("attic", "rtx-4090"))
    known = {node.name: node.link.figures_from for node in moved.nodes if node.link}
    assert sorted(known.values()) == ["catalogue", "typed"]
    assert known["shed"] == "typed"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("probed", "probed"), "probed"),
        (("probed", "catalogue"), "catalogue"),
        (("probed", "catalogue", "typed"), "typed"),
    ],
)
def test_of_several_the_one_that_is_known_least_counts(
    given: tuple[FiguresFrom, ...], expected: FiguresFrom
) -> None:
    assert least_known(given) == expected
