"""The production dispatcher and membership over virtual nodes; faults strike, every sum is checked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.dispatch.spot_check import SpotCheck
from orchestrator.dispatch.view import ClusterView, WorkerAddress
from orchestrator.membership.events import Event, GaveUp, Liar
from orchestrator.membership.member import Expected
from orchestrator.membership.membership import Action, Here, Membership
from orchestrator.membership.rescue import BoxRoom
from orchestrator.model.passes import run_pass
from placement.patience import Patience
from placement.plan import LOCAL_WORKER, Plan
from tests.simulation.nodes import (
    DTYPE,
    FINGERPRINT,
    SESSION,
    Holdings,
    Node,
    contribution,
    nodes_of,
    partial_sum,
)
from tests.simulation.world import World
from transport.expert_rows import ExpertRows
from transport.messages import Hold, Reply

HIDDEN = 2


class VirtualCluster:
    """Also the dispatcher's `Network`: while it waits, the world goes on."""

    def __init__(
        self,
        world: World,
        plan: Plan,
        room: dict[str, BoxRoom],
        patience: Patience,
        *,
        spot_check: float = 0.0,
    ) -> None:
        self.world = world
        self.events: list[Event] = []
        self.local = Holdings(plan.experts_of(LOCAL_WORKER) if plan.local_worker is not None else {})
        self.nodes = nodes_of(world, plan, self._pulse_answer, self._data_answer)
        self._index = {node.name: index for index, node in self.nodes.items()}
        self._inbox: dict[int, deque[Reply]] = {index: deque() for index in self.nodes}
        self._connection = dict.fromkeys(self.nodes, 0)
        self._watch_sleeps_until_s = 0.0
        self._waits: list[Callable[[], None]] = []
        self.membership = Membership(
            plan,
            {node.name: WorkerAddress("data", "pulse", None, 0) for node in self.nodes.values()},
            Expected(FINGERPRINT, DTYPE),
            session=SESSION,
            tell=self.events.append,
            now_s=world.now_s,
            room=room,
            patience=patience,
            join_s=5.0,
        )
        for index in self.nodes:
            self._do(self.membership.connected(index, world.now_s))
        world.at(0.0, self._tick)
        self.dispatcher = Dispatcher(
            lambda: self.membership.standing,
            self,
            local=self.local,  # type: ignore[arg-type]
            max_rows=4,
            patience=patience,
            tell=self._tell,
            spot_check=SpotCheck(spot_check, partial_sum) if spot_check else None,
            clock=lambda: world.now_s,
        )

    # Faults.

    def kill(self, node: Node) -> None:
        if node.is_up:
            node.kill()
            index = self._index[node.name]
            self._lose_connection(index)
            self._to_watch(lambda: self.membership.closed(index, self.world.now_s))

    def start(self, node: Node) -> None:
        if not node.is_up:
            node.start(node.instance)
            self._reconnect(self._index[node.name])

    def cut_connections(self, node: Node) -> None:
        """The kernel closes both, and they come back at once."""
        index = self._index[node.name]
        self._lose_connection(index)
        self._to_watch(lambda: self.membership.closed(index, self.world.now_s))
        self.world.at(self.world.now_s + 0.05, lambda: self._reconnect(index))

    def hold_up_watch(self, for_s: float) -> None:
        """The head's watching thread does not run for so long."""
        self._watch_sleeps_until_s = self.world.now_s + for_s

    # Passes.

    def run_pass(self, layers: Sequence[int], expert_ids: NDArray[np.int32], *, away_s: float = 0.0) -> None:
        """One pass over `layers`: int32 [num_layers, num_tokens, top_k]; raises AssertionError if wrong.

        `away_s`: what the head does for so long at most between asking and looking for answers.
        """
        num_tokens = expert_ids.shape[1]
        hidden = np.repeat(np.arange(num_tokens, dtype=np.float32)[:, None], HIDDEN, axis=1)
        exponents = np.zeros(num_tokens, np.int32)
        weights = np.ones(expert_ids.shape[1:], np.float32)

        def all_layers() -> Tensor:
            sums = []
            for row, layer in enumerate(layers):
                rows = ExpertRows(hidden, expert_ids[row], weights, exponents)
                asked = self.dispatcher.ask(layer, rows)
                if away_s:
                    self.pause(away_s * self.world.rng.random())
                sums.append(self.dispatcher.collect(asked))
            return torch.stack(sums)

        got = run_pass(self.dispatcher, all_layers).numpy()
        for row, layer in enumerate(layers):
            for token in range(num_tokens):
                wanted = sum(contribution(layer, token, int(e)) for e in expert_ids[row, token])
                assert got[row, token].tolist() == [wanted] * HIDDEN, f"layer {layer}: a wrong sum"

    # The dispatcher's network.

    def match(self, view: ClusterView) -> None:
        for index in self.nodes:
            if index in view.absent:
                self._lose_connection(index)

    def send(self, worker: int, request_id: int, epoch: int, layer: int, rows: ExpertRows) -> None:
        node, connection = self.nodes[worker], self._connection[worker]

        def arrive() -> None:
            if self._connection[worker] == connection:
                node.get_data(request_id, epoch, layer, rows)

        self.world.carry(arrive)

    def receive(self, worker: int) -> Reply | None:
        inbox = self._inbox[worker]
        return inbox.popleft() if inbox else None

    def wait(self, wait_s: float) -> list[int]:
        self.world.run_until(self.world.now_s + max(wait_s, 1e-4), lambda: any(self._inbox.values()))
        return [worker for worker, inbox in self._inbox.items() if inbox]

    def pause(self, pause_s: float) -> None:
        self.world.run_until(self.world.now_s + pause_s, lambda: False)

    def reopen(self, worker: int) -> None:
        self._lose_connection(worker)

    def carried_bytes(self, worker: int) -> int:
        return 0

    def close(self) -> None:
        """Nothing stays open."""

    # Between the two.

    def _lose_connection(self, index: int) -> None:
        self._connection[index] += 1

    def _reconnect(self, index: int) -> None:
        node = self.nodes[index]
        if node.is_up and not node.is_cut:
            self._to_watch(lambda: self._do(self.membership.connected(index, self.world.now_s)))

    def _data_answer(self, node: Node, reply: Reply) -> None:
        index = self._index[node.name]
        connection, instance = self._connection[index], node.instance

        def arrive() -> None:
            if self._connection[index] == connection and node.instance == instance and not node.is_cut:
                self._inbox[index].append(reply)

        self.world.carry(arrive)

    def _pulse_answer(self, node: Node, reply: Reply) -> None:
        index, instance = self._index[node.name], node.instance

        def arrive() -> None:
            if node.instance == instance and not node.is_cut:
                self._to_watch(lambda: self._do(self.membership.received(index, reply, self.world.now_s)))

        self.world.carry(arrive)

    def _to_watch(self, happen: Callable[[], None]) -> None:
        if self.world.now_s < self._watch_sleeps_until_s:
            self._waits.append(happen)
        else:
            happen()

    def _tick(self) -> None:
        world = self.world
        if world.now_s < self._watch_sleeps_until_s:
            world.at(self._watch_sleeps_until_s, self._tick)
            return
        waits, self._waits = self._waits, []
        for happen in waits:
            happen()
        self._do(self.membership.tick(world.now_s, self.dispatcher.epoch))
        world.at(self.membership.wake_at_s(), self._tick)

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Here):
                order = action.order
                held = self.local.hold(order) if isinstance(order, Hold) else self.local.drop(order)
                self._do(self.membership.received(action.worker, held, self.world.now_s))
            else:
                node, message = self.nodes[action.worker], action.message
                self.world.carry(lambda node=node, message=message: node.get_pulse(message))  # type: ignore[misc]

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, GaveUp | Liar):
            now_s = self.world.now_s
            self.membership.accused(event.worker, event.why, now_s, for_good=isinstance(event, Liar))
