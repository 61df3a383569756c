"""Which of Ray's nodes a plan's node is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from placement.errors import WorkerStartError
from placement.plan import PlannedWorker


@dataclass(frozen=True, slots=True)
class Node:
    """A machine in Ray. `names` are all it goes by: address, host name, own resources, values of labels."""

    id: str
    address: str
    num_cpus: int
    names: frozenset[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"names": sorted(self.names)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Node:
        """Of what `to_dict` gave."""
        return cls(**{**fields, "names": frozenset(fields["names"])})

    @classmethod
    def from_ray(cls, entry: Mapping[str, Any]) -> Node:
        """From an entry of `ray.nodes()`."""
        resources = entry["Resources"]
        names = {entry["NodeManagerAddress"], entry["NodeManagerHostname"], entry.get("NodeName", "")}
        names |= set(entry.get("Labels", {}).values())
        # A node can carry its name as a resource: `ray start --resources='{"box-a": 1}'`.
        names |= {name for name in resources if not name.startswith("node:")}
        return cls(
            id=entry["NodeID"],
            address=entry["NodeManagerAddress"],
            num_cpus=max(1, int(resources.get("CPU", 1))),
            names=frozenset(names - {"", "CPU", "GPU", "memory", "object_store_memory"}),
        )


def place(workers: Sequence[PlannedWorker], nodes: Sequence[Node]) -> dict[str, Node]:
    """The node of each worker.

    A plan for one machine goes to the only node there is, whatever its name.

    Args:
        nodes: those alive.

    Returns:
        Worker name -> node, in the workers' order.

    Raises:
        WorkerStartError: no node, or several, of a worker's node name.
    """
    wanted = {worker.node for worker in workers}
    if len(wanted) == len(nodes) == 1:
        return {worker.name: nodes[0] for worker in workers}
    found = {}
    for worker in workers:
        matching = [node for node in nodes if worker.node in node.names]
        if len(matching) != 1:
            known = "; ".join(", ".join(sorted(node.names - {node.id})) for node in nodes)
            raise WorkerStartError(
                f"worker {worker.name}: {len(matching)} of Ray's nodes are called {worker.node!r}, expected "
                f"one of these names: {known}: start Ray there, or plan with these names; without "
                "--ray-address all workers start on this machine"
            )
        found[worker.name] = matching[0]
    return found
