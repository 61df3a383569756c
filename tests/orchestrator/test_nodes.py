"""A plan's nodes are found in Ray, or it is said which were looked for."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.nodes import Node, place
from placement.errors import WorkerStartError
from placement.plan import PlannedTier


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """As `ray.nodes()` gives it."""
    return {
        "NodeID": f"id-{number}",
        "Alive": True,
        "NodeManagerAddress": f"10.77.0.{number}",
        "NodeManagerHostname": f"h{number}",
        "NodeName": f"10.77.0.{number}",
        "Resources": {"CPU": 2.0, "memory": 1e9, f"node:10.77.0.{number}": 1.0, f"box-{number}": 1.0},
        "Labels": {"ray.io/node-id": f"id-{number}", "potluck": f"label-{number}"},
    } | changes


def worker(name: str, node: str) -> PlannedTier:
    return PlannedTier(name, node, "cpu", "ram", 1)


NODES = [Node.from_ray(entry(number)) for number in (1, 2, 3)]


@pytest.mark.parametrize("name", ["10.77.0.2", "h2", "box-2", "label-2", "id-2"])
def test_a_node_goes_by_address_host_name_resource_and_label(name: str) -> None:
    assert place([worker("a", name), worker("b", "h3")], NODES) == {"a": NODES[1], "b": NODES[2]}


def test_a_plan_for_one_machine_goes_to_the_only_node() -> None:
    workers = [worker("a", "this-machine"), worker("b", "this-machine")]
    assert set(place(workers, NODES[:1]).values()) == {NODES[0]}


def test_a_node_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(WorkerStartError, match=r"worker b: 0 of Ray's nodes are called 'attic'.*box-1.*h3"):
        place([worker("a", "h1"), worker("b", "attic")], NODES)


def test_a_name_that_two_nodes_bear_is_not_guessed() -> None:
    twins = [
        Node.from_ray(entry(1, NodeManagerHostname="pc")),
        Node.from_ray(entry(2, NodeManagerHostname="pc")),
    ]
    with pytest.raises(WorkerStartError, match="2 of Ray's nodes are called 'pc'"):
        place([worker("a", "pc"), worker("b", "pc")], twins)


def test_sizes_of_a_node_are_not_among_its_names() -> None:
    assert not NODES[0].names & {"CPU", "memory", "node:10.77.0.1"}
    assert NODES[0].num_cpus == 2
    assert Node.from_ray(entry(1, Resources={})).num_cpus == 1
