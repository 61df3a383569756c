"""One seed: a cluster, a plan, a workload and faults, all drawn; and what must hold whatever was drawn.

Invariants:

- every sum is exact: each (token, expert) pair counts once, however often it was asked for;
- no pass is lost, repeated or left out: they end in order, each once;
- passes go on: once the faults are over, all that are left end within a bound;
- after the last fault began, a pass goes on within what suspicion, death and rescue may take, whether
  or not the fault is over;
- nothing is asked of a worker that a view leaves out, nor of the head what it does not hold; nor, where every
  message arrives once and in order, of a worker that was greeted.
"""

from __future__ import annotations

import math

import numpy as np

from orchestrator.membership.events import Event, Liar
from orchestrator.membership.rescue import BoxRoom
from placement.holders import HolderTable
from placement.patience import Patience
from placement.plan import LOCAL_WORKER, Plan, PlannedTier, like_layers
from tests.simulation.cluster import VirtualCluster
from tests.simulation.nodes import DTYPE, FINGERPRINT, Node
from tests.simulation.world import Faults, World

LAYERS, EXPERTS, TOP_K = (3, 4), 12, 3
FAULTS_S = 1.5
"""Faults begin within so much time."""
BOUND_S = 30.0
"""After the last fault has ended: for all passes that are left."""
RESCUED_S, JOIN_S = 3.0, 5.0
"""To the next pass: for each fault a second of silence and a rescue; and what never joined is waited for."""
KINDS = (
    "kill",
    "kill for good",
    "pause",
    "pause two",
    "come and go",
    "cut link",
    "cut connections",
    "slow",
    "refuse",
    "hang",
    "hold up watch",
)


def draw_plan(
    rng: np.random.Generator, survive: bool, num_boxes: int | None = None, *, head_holds: bool | None = None
) -> Plan:
    """Two to four boxes and perhaps the head; with `survive` every expert on two boxes or the head."""
    names = [f"w{i}" for i in range(num_boxes or rng.integers(2, 5))]
    if head_holds if head_holds is not None else rng.random() < 0.5:
        names.insert(0, LOCAL_WORKER)
    owners = rng.integers(len(names), size=(len(LAYERS), EXPERTS))
    masks = np.zeros((len(names), len(LAYERS), EXPERTS), np.bool_)
    for worker in range(len(names)):
        masks[worker] |= owners == worker
        if survive:
            masks[(worker + 1) % len(names)] |= owners == worker
    return Plan(
        model="made-up",
        fingerprint=FINGERPRINT,
        layers=like_layers(LAYERS, "float32", 1000),
        dtype=DTYPE,
        tiers=tuple(PlannedTier(name, name, "cpu", "ram", 10**6) for name in names),
        holder_table=HolderTable.from_masks(masks),
        policy="drawn",
        survive=1 if survive else 0,
    )


class Scenario:
    """What one seed gives."""

    def __init__(self, seed: int, num_passes: int = 12) -> None:
        rng = self.rng = np.random.default_rng(seed)
        self.num_passes = num_passes
        faults = Faults(
            lost=float(rng.choice([0.0, 0.0, 0.02, 0.1])),
            doubled=float(rng.choice([0.0, 0.1])),
            delay_s=float(rng.choice([0.0005, 0.005, 0.03])),
        )
        self.world = World(rng, faults=faults)
        survive = bool(rng.random() < 0.6)
        self.plan = draw_plan(rng, survive)
        # Where no other box holds it, somebody can read it from a file; the head always can.
        room = {LOCAL_WORKER: BoxRoom(1e9)}
        for worker in self.plan.asked_workers:
            if rng.random() < 0.5:
                room[worker.name] = BoxRoom(float(rng.choice([1e8, 1e9])), int(rng.choice([0, 10**6])))
        patience = Patience(stuck_after_s=1.0, view_wait_s=BOUND_S)
        share = float(rng.choice([0.0, 0.0, 0.3]))
        self.cluster = VirtualCluster(self.world, self.plan, room, patience, spot_check=share)
        # The head computes attention and more between asking and looking.
        self.away_s = float(rng.choice([0.0, 0.0, 0.01, 0.4]))
        for node in self.cluster.nodes.values():
            node.most_waiting = int(rng.choice([1, 2, 1_000]))
        # Some clusters' workers were started from an older plan: each as the next one is to be.
        if rng.random() < 0.3:
            nodes = list(self.cluster.nodes.values())
            given = [node.planned for node in nodes]
            for node, planned in zip(nodes, given[1:] + given[:1], strict=True):
                node.planned = planned
                node.start(node.instance)
        self.over_s = self.begun_s = 0.0
        self.is_orderly = faults.lost == faults.doubled == 0.0
        self.log: list[str] = []
        for _ in range(rng.integers(0, 4)):
            self._plan_fault()

    @property
    def events(self) -> list[Event]:
        return self.cluster.events

    def run(self) -> None:
        """All passes; raises AssertionError where an invariant breaks."""
        for number in range(self.num_passes):
            num_tokens = int(self.rng.choice([1, 1, 1, 2, 9]))
            ids = np.argsort(self.rng.random((len(LAYERS), num_tokens, EXPERTS)), axis=2)[:, :, :TOP_K]
            began_s = self.world.now_s
            self.cluster.run_pass(LAYERS, ids.astype(np.int32), away_s=self.away_s)
            late_s = self.world.now_s - max(began_s, self.over_s)
            assert late_s < BOUND_S, f"pass {number} took {late_s:.1f} s after all faults were over"
            if self.log:
                late_s = self.world.now_s - max(began_s, self.begun_s)
                assert late_s < JOIN_S + RESCUED_S * len(self.log), (
                    f"pass {number} took {late_s:.1f} s after the last fault began"
                )
            if self.is_orderly:
                asked_in_vain = [node.name for node in self.cluster.nodes.values() if node.not_held]
                assert not asked_in_vain, f"asked for what they do not hold: {asked_in_vain}"
            # The head's own work.
            self.cluster.pause(float(self.rng.uniform(0, 0.2)))

    def _plan_fault(self) -> None:
        rng, world, cluster = self.rng, self.world, self.cluster
        kind = str(rng.choice(KINDS))
        node = cluster.nodes[int(rng.choice(list(cluster.nodes)))]
        start_s = float(rng.uniform(0, FAULTS_S))
        stop_s = start_s + float(rng.choice([0.1, 0.5, 30.0]))
        self.over_s, self.begun_s = max(self.over_s, stop_s), max(self.begun_s, start_s)
        self.log.append(f"{start_s:.2f} to {stop_s:.2f} s: {kind} {node.name}")
        world.at(start_s, lambda: self._begin(kind, node, stop_s - start_s))
        world.at(stop_s, lambda: self._end(kind, node))

    def _begin(self, kind: str, node: Node, for_s: float) -> None:
        cluster = self.cluster
        if kind.startswith("kill"):
            cluster.kill(node)
        elif kind == "pause":
            node.is_paused = True
        elif kind == "pause two":
            for each in self._with_replica(node):
                each.is_paused = True
        elif kind == "come and go":
            come_and_go(self.world, node, self.world.now_s + for_s)
        elif kind == "cut link":
            node.is_cut = True
        elif kind == "cut connections":
            cluster.cut_connections(node)
        elif kind == "slow":
            node.slow = 20.0
        elif kind == "refuse":
            node.refuses = True
        elif kind == "hang":
            node.hangs = True
        else:
            cluster.hold_up_watch(min(for_s, 1.0))

    def _end(self, kind: str, node: Node) -> None:
        cluster = self.cluster
        if kind == "kill":
            cluster.start(node)
        elif kind == "pause":
            node.resume()
        elif kind == "pause two":
            for each in self._with_replica(node):
                each.resume()
        elif kind == "cut link":
            node.is_cut = False
        elif kind == "slow":
            node.slow = 1.0
        elif kind == "refuse":
            node.refuses = False
        elif kind == "hang" and node.hangs and node.is_up:
            # Somebody ends the process that hangs, and starts it again.
            cluster.kill(node)
            cluster.start(node)

    def _with_replica(self, node: Node) -> tuple[Node, ...]:
        """A box and the one that holds the same experts, where two do (`draw_plan`)."""
        nodes = list(self.cluster.nodes.values())
        return node, nodes[(nodes.index(node) + 1) % len(nodes)]


def run_with_a_liar(seed: int) -> None:
    """One worker computes something else from some time on; every answer is checked, and others hold all."""
    rng = np.random.default_rng(seed)
    world = World(rng, faults=Faults(delay_s=float(rng.choice([0.0005, 0.005, 0.03]))))
    plan = draw_plan(rng, survive=True)
    cluster = VirtualCluster(world, plan, {LOCAL_WORKER: BoxRoom(1e9)}, Patience(), spot_check=1.0)
    liar = cluster.nodes[int(rng.choice(list(cluster.nodes)))]
    # A check needs the others: they join first.
    cluster.pause(1.0)
    world.at(1.0 + float(rng.uniform(0, 0.3)), lambda: setattr(liar, "lies", True))
    for _ in range(12):
        num_tokens = int(rng.choice([1, 1, 2, 9]))
        ids = np.argsort(rng.random((len(LAYERS), num_tokens, EXPERTS)), axis=2)[:, :, :TOP_K]
        cluster.run_pass(LAYERS, ids.astype(np.int32))
    accused = {event.worker for event in cluster.events if isinstance(event, Liar)}
    assert accused <= {liar.name}, f"{accused} accused, {liar.name} lied"
    assert accused or not liar.lies, f"{liar.name} lied and was not found"


def come_and_go(world: World, node: Node, until_s: float) -> None:
    """Paused 1.5 s of every 2 s."""
    node.is_paused = True
    world.at(world.now_s + 1.5, node.resume)
    if world.now_s + 2.0 < until_s:
        world.at(world.now_s + 2.0, lambda: come_and_go(world, node, until_s))


def passes_within(for_s: float, seed: int, *, comes_and_goes: bool) -> int:
    """How many passes end in time where one of three workers without replicas rests 1.5 s of every 2."""
    rng = np.random.default_rng(seed)
    world = World(rng, faults=Faults(delay_s=0.001))
    plan = draw_plan(rng, survive=False, num_boxes=3, head_holds=False)
    room = {name: BoxRoom(1e9, 10**6) for name in ("w0", "w1", "w2")}
    cluster = VirtualCluster(world, plan, room, Patience())
    cluster.pause(1.0)
    if comes_and_goes:
        come_and_go(world, cluster.nodes[0], math.inf)
    until_s, passes = world.now_s + for_s, 0
    while world.now_s < until_s:
        ids = np.argsort(rng.random((len(LAYERS), 1, EXPERTS)), axis=2)[:, :, :TOP_K]
        cluster.run_pass(LAYERS, ids.astype(np.int32))
        passes += 1
    return passes
