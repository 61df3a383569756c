"""Two boxes that are this machine: measured, linked, and measured again when they change."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from orchestrator.cli.probe import why_again, with_earlier
from orchestrator.probe import cluster
from orchestrator.probe.boxes import ProbedBox
from orchestrator.probe.child import running
from orchestrator.probe.cluster import (
    fingerprints,
    measure_links,
    measure_node,
    measure_software,
    probe_cluster,
)
from placement.errors import BoxUnreachable
from tests.forks.forks import Forks
from tests.placement.given.probes import node, probe

BROKEN = ProbedBox(
    "cellar", "127.0.0.1", lambda _: [sys.executable, "-c", "import sys; sys.exit('no Potluck')"]
)


@pytest.fixture
def desk(forks: Forks) -> ProbedBox:
    return ProbedBox("desk", "127.0.0.1", forks.command)


@pytest.fixture
def attic(forks: Forks) -> ProbedBox:
    return ProbedBox("attic", "127.0.0.1", forks.command)


def ignore(name: str, what: str) -> None:
    """Progress that nobody watches."""


def test_a_link_is_measured_over_encrypted_sockets_and_a_broken_box_is_named(
    desk: ProbedBox, attic: ProbedBox
) -> None:
    links, failed = measure_links(desk, [attic, BROKEN], ignore)
    assert list(links) == ["attic"]
    link = links["attic"]
    assert 0 < link.p50_s <= link.p99_s
    assert link.there_bytes_per_s > 0
    assert failed["cellar"] == "cellar: its probe ended: no Potluck"


def test_a_probe_measures_all_in_what_time_there_is_and_names_a_broken_box(
    desk: ProbedBox, attic: ProbedBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_LEAST_S", 0.5)
    probed = probe_cluster([desk, attic, BROKEN], "desk", ["q8_0"], ignore, total_s=1.0)
    found = probed.probe
    assert (list(found.nodes), list(found.links)) == (["desk", "attic"], ["attic"])
    assert [len(node.kernels[0].flops_per_s) for node in found.nodes.values()] == [5, 5]
    assert found.software is not None
    assert list(probed.failed) == ["cellar"]
    assert 0 < probed.start_s < probed.seconds
    with pytest.raises(BoxUnreachable, match="no Potluck"):
        probe_cluster([BROKEN, desk], "cellar", ["q8_0"], ignore, total_s=1.0)


def test_the_heads_software_is_measured(desk: ProbedBox) -> None:
    found = measure_software(desk, node(), ignore, 0.2)
    assert found.message_s > 0
    assert found.moe_layer_s > 0
    assert found.attention.rows[0] == 1


def test_a_box_that_answers_nonsense_is_named() -> None:
    says = "print('\"ready\"', flush=True); input(); print('{\"versions\": 1}')"
    wrong = ProbedBox("attic", "127.0.0.1", lambda _: [sys.executable, "-c", says])
    with pytest.raises(BoxUnreachable, match=r"attic: its probe answered versions.*the same there\?"):
        measure_node(wrong, (), ignore)
    other = ProbedBox("attic", "127.0.0.1", lambda _: [sys.executable, "-c", "print(3)"])
    with pytest.raises(BoxUnreachable, match="attic: expected its probe to be ready, found something else"):
        measure_node(other, (), ignore)
    missing = ProbedBox("attic", "127.0.0.1", lambda _: ["/nowhere/python"])
    with pytest.raises(BoxUnreachable, match="attic: cannot start /nowhere/python"):
        measure_node(missing, (), ignore)


def test_a_probe_holds_until_something_changes(desk: ProbedBox, attic: ProbedBox) -> None:
    now, failed = fingerprints([desk, BROKEN])
    assert list(failed) == ["cellar"]
    box = node()
    same = box.model_copy(update={"hardware": box.hardware.model_copy(update={"fingerprint": now["desk"]})})
    before = probe(nodes={"desk": same, "attic": same})
    boxes = [desk, attic]
    assert why_again(before, boxes, "desk", ["q8_0"]) == ""
    assert why_again(before, boxes, "attic", []) == "the head was desk"
    assert why_again(before, boxes, "desk", ["q4_k"]) == "q4_k was not measured"
    assert why_again(before, [*boxes, replace(BROKEN, name="new")], "desk", []) == "new was not measured"
    other = before.model_copy(update={"nodes": {"desk": box, "attic": same}})
    assert why_again(other, boxes, "desk", []) == "hardware or versions of desk have changed"


def test_what_an_earlier_probe_knew_of_a_box_that_failed_is_kept() -> None:
    earlier = probe()
    found = earlier.model_copy(update={"nodes": {"desk": node()}, "links": {}})
    kept = with_earlier(found, earlier, {"attic": "it is off"})
    assert kept.nodes == {"attic": earlier.nodes["attic"], "desk": found.nodes["desk"]}
    assert kept.links == earlier.links
    assert with_earlier(found, earlier, {}) == found
    assert with_earlier(found, None, {"attic": ""}) == found
    assert with_earlier(found, earlier.model_copy(update={"head": "attic"}), {"attic": ""}) == found


def test_a_child_ends_with_its_block() -> None:
    with running("desk", [sys.executable, "-c", "print('1', flush=True); input()"]) as child:
        assert child.receive() == 1
    with pytest.raises(ValueError, match="closed file"):
        child.line()
