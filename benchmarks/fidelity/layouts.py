"""Which experts live where, over which kind of link, and how many drafts a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan, PlannedTier, like_layers

HEAD_NODE = "this-machine"
LinkKind = Literal["local", "limited", "delayed"]


@dataclass(frozen=True, slots=True)
class Setup:
    """Processes that run together.

    Attributes:
        shares: of all experts, the head's first (0: it holds none) and each worker's, adding up to 1.
        links: of each worker; "local" is an ipc socket.
    """

    name: str
    shares: tuple[float, ...]
    links: tuple[LinkKind, ...] = ()
    drafts: tuple[int, ...] = (0,)

    @property
    def num_workers(self) -> int:
        return len(self.links)


def _local(count: int) -> tuple[LinkKind, ...]:
    return tuple("local" for _ in range(count))


SETUPS = (
    Setup("one box", (1.0,), (), (0, 3)),
    Setup("1 worker", (0.0, 1.0), ("local",), (0,)),
    Setup("head and 1 worker", (0.5, 0.5), ("local",), (0, 3)),
    Setup("2 workers", (0.0, 0.5, 0.5), _local(2), (0, 3)),
    Setup("head and 3 workers, unequal", (0.125, 0.5, 0.25, 0.125), _local(3), (0, 3)),
    Setup("4 workers", (0.0, 0.25, 0.25, 0.25, 0.25), _local(4), (0, 3)),
    Setup("head and 1 worker, 200 Mbit/s", (0.5, 0.5), ("limited",), (0, 3)),
    Setup("head and 2 workers, one 3 ms away", (0.5, 0.25, 0.25), ("local", "delayed"), (0, 3)),
)


def node_of(worker: int, link: LinkKind) -> str:
    """Workers on ipc sockets are processes of the head's node; others count as boxes of their own."""
    return HEAD_NODE if link == "local" else f"box-{worker}"


def make_plan(shape: ModelShape, setup: Setup, expert_bytes: int) -> Plan:
    """Experts dealt by lot, in every layer as many to each as its share says."""
    workers: list[tuple[str, str]] = [(LOCAL_WORKER, HEAD_NODE)]
    workers += [(f"{node_of(i, link)}-w{i}", node_of(i, link)) for i, link in enumerate(setup.links)]
    shares: Sequence[float] = setup.shares
    if not shares[0]:
        workers, shares = workers[1:], shares[1:]
    ends = np.rint(np.cumsum(shares) * shape.num_experts).astype(int)
    counts = np.diff(ends, prepend=0)
    generator = np.random.default_rng(7)
    table = np.stack(
        [
            generator.permutation(np.repeat(np.arange(len(workers)), counts))
            for _ in range(shape.num_moe_layers)
        ]
    )
    budgets = (counts * shape.num_moe_layers * expert_bytes).tolist()
    return Plan(
        shape.name,
        shape.fingerprint,
        like_layers(shape.moe_layers, "float32", expert_bytes),
        "float32",
        tuple(
            PlannedTier(name, node, "cpu", "ram", budget)
            for (name, node), budget in zip(workers, budgets, strict=True)
        ),
        HolderTable.from_single(table),
        "by lot",
    )
