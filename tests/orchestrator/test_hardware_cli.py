"""`potluck hardware`: all names with what they reach, and one with its sources and the lines to write."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from placement.given.cluster_file import load_cluster
from placement.hardware.catalogue import packaged_catalogue
from tests.orchestrator.command_line import Potluck, document, says


def test_every_name_is_listed_once(potluck: Potluck) -> None:
    code, out, _ = potluck("hardware")
    assert code == 0
    first_words = [line.split()[0] for line in out.splitlines() if line.strip()]
    for name in packaged_catalogue().entries:
        assert first_words.count(name) == 1, name


@pytest.mark.parametrize("name", ["strix-halo", "ddr5-6000-dual", "nvme-gen4"])
def test_an_entry_is_explained_and_its_lines_are_a_node(name: str, potluck: Potluck, tmp_path: Path) -> None:
    code, out, _ = potluck("hardware", name)
    assert code == 0
    entry = packaged_catalogue().entry(name)
    explained = " ".join(out.split())
    for source in (entry.data_sheet.source, packaged_catalogue().shares_of(entry).source):
        assert " ".join(source.split()) in explained
    pasted = out.split("In a cluster file:")[1]
    short = yaml.safe_load(pasted.split("or, typed")[0])
    long = yaml.safe_load(pasted[pasted.index("devices:") :])
    nodes = []
    for number, part in enumerate((short, long)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump({"head": "box", "nodes": [{"name": "box", **part}]}))
        nodes.append(load_cluster(path).nodes)
    assert nodes[0] == nodes[1]


@pytest.mark.parametrize(("name", "of_head"), [("rtx-4090", True), ("nvme-gen4", False)])
def test_typed_lines_say_so_where_they_hold_for_the_head_alone(
    name: str, of_head: bool, potluck: Potluck
) -> None:
    _, out, _ = potluck("hardware", name)
    assert ("that the head computes on" in out) is of_head
    assert ("overheads: {" in out) is of_head
    (device,) = yaml.safe_load(out[out.index("devices:") :])["devices"]
    assert list(device)[:3] == ["name", "kind", "memory_bytes"]


def test_a_link_is_explained_and_its_lines_are_links(potluck: Potluck) -> None:
    code, out, _ = potluck("hardware", "wifi-6")
    assert code == 0
    short, long = (yaml.safe_load(part.splitlines()[0])[0] for part in out.split("links:\n")[1:])
    assert short == {"node": "NODE", "hardware": "wifi-6"}
    assert {"node", "round_trip_s", "bandwidth_gbits_per_s"} == set(long)


def test_the_document_has_the_figures_with_their_sources(potluck: Potluck) -> None:
    (found,) = document(potluck("hardware", "rtx-4090", "--json"))["hardware"]
    assert found["data_sheet"]["bandwidth_gbytes_per_s"] == 1008
    figure = found["figures"]["bandwidth_gbytes_per_s"]
    assert 0 < figure["value"] < 1008
    assert figure["known"] in ("published", "class", "assumed")
    assert figure["source"]


def test_an_unknown_name_is_answered_with_near_ones(potluck: Potluck) -> None:
    code, out, err = potluck("hardware", "RTX 4090")
    assert (code, out) == (2, "")
    assert says(err, "unknown hardware … RTX 4090 … is rtx-4090")
