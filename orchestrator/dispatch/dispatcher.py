"""Runs a layer's experts where the view of the cluster puts them: sockets and clock around `LayerSum`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.dispatch.asked import Asked, as_sent, rows_of
from orchestrator.dispatch.checks import Checks, give_up_waiting
from orchestrator.dispatch.connections import Connections, Network
from orchestrator.dispatch.debts import Ask, Ints
from orchestrator.dispatch.layer_sum import Action, LayerSum
from orchestrator.dispatch.pace import Pace
from orchestrator.dispatch.pass_lost import PassLost
from orchestrator.dispatch.spot_check import Answer, SpotCheck
from orchestrator.dispatch.terms import ALL_WELL, Around, Choose, Terms
from orchestrator.dispatch.usage import Usage
from orchestrator.dispatch.view import NOBODY, ClusterView, WorkerAddress
from orchestrator.membership.events import PassRepeated, Slowed, Tell
from orchestrator.membership.standing import Stand, Standing
from orchestrator.timing import StepTimer
from placement.assign.one_step import ReplicaCosts, assign_experts
from placement.errors import NonFiniteError, WorkerLost, WorkerRefused
from placement.holders import LayerHolders
from placement.patience import Patience
from placement.plan import Plan
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.messages import ErrorCode, ErrorReply, ForwardReply, WireError
from workers import fixed_point
from workers.tiers import ExpertTier

# How often the news of the workers are looked at while an answer is awaited, and at the latest where answers
# keep coming.
LOOK_S = 0.02
_LOOK_ANYWAY_S = 0.05
# How often it is asked which workers are slow.
_PACE_S = 0.5
_VIEW_POLL_S = 0.005


class Dispatcher:
    """The head's `ExpertRunner`: its own experts here, the others over ZeroMQ, all at the same time.

    A pass keeps the view that it began with. Connections follow the view.

    Args:
        standing: the newest view, and the news of its workers.
        network: reaches the workers.
        local: the experts of worker "head", None when it has none.
        timer: shared with the model.
        tell: takes what happens.
        spot_check: which requests others are to compute as well; None for none.
    """

    def __init__(
        self,
        standing: Stand,
        network: Network,
        *,
        local: ExpertTier | None,
        max_rows: int,
        timer: StepTimer | None = None,
        patience: Patience | None = None,
        tell: Tell | None = None,
        spot_check: SpotCheck | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timer = timer if timer is not None else StepTimer()
        self._dispatch_part, self._wire_part = self.timer.part("dispatch"), self.timer.part("wire")
        self._local_experts_part = self.timer.part("local_experts")
        self._remote_wait_part = self.timer.part("remote_wait")
        self.usage = Usage([])
        self._standing = standing
        self._local = local
        self._network = network
        self._max_rows = max_rows
        self._patience = patience if patience is not None else Patience()
        self._tell = tell
        self._clock = clock
        self._checks = (
            None if spot_check is None else Checks(spot_check, self._sum_by_others, self.usage, tell, clock)
        )
        self._request_ids = count(1)
        self._pace = Pace((), self._patience)
        self._factors: dict[int, float] = {}
        self._pace_due_s = -math.inf
        self._look_by_s = 0.0
        self._take(standing().view)

    @property
    def view(self) -> ClusterView:
        """Of the present pass."""
        return self._view

    @property
    def epoch(self) -> int:
        """Of the present pass's view; safe from any thread."""
        return self._view.epoch

    def begin_pass(self, lost: PassLost | None = None) -> None:
        """Take the newest view for what follows.

        Args:
            lost: why the last pass could not end, if it did not; then a newer view is waited for.

        Raises:
            WorkerLost, WorkerRefused: no view in which every expert has a holder came in time.
        """
        standing = self._standing()
        if lost is not None or not standing.view.is_complete:
            standing = self._next_view(lost)
        now_s = self._clock()
        if standing.view is not self._view:
            self._take(standing.view)
        elif now_s < self._pace_due_s:
            return
        self._reprice(now_s)

    def ask(self, layer: int, rows: ExpertRows) -> Asked:
        """See `ExpertRunner.ask`: requests to other workers leave, nothing is computed here yet.

        Raises:
            PassLost: an expert has no holder left.
        """
        with self._dispatch_part:
            asked = Asked(layer, rows, self._layer_sum(layer, rows, self._choose[layer]))
            before = self.usage.messages
            self._begin(asked)
            self.usage.remote_layers += self.usage.messages > before
        return asked

    def collect(self, asked: Asked) -> Tensor:
        """See `ExpertRunner.collect`, and `collect_on_grid`."""
        values, scale_exponents = self.collect_on_grid(asked)
        with self._dispatch_part:
            return fixed_point.to_float32(values, scale_exponents)

    def collect_on_grid(self, asked: Asked) -> tuple[Ints, Ints]:
        """This process's own experts first, then what the others answer.

        Returns:
            The sums int32 [num_tokens, hidden], and the exponents [num_tokens] of the grids they are on:
            those that were asked for, or coarser ones.

        Raises:
            PassLost: an expert has no holder left, or a worker was found to compute wrong numbers.
            NonFiniteError: an expert's output is not finite.
            ModelFilesFailed: this process computes something else than its model's files say.
        """
        work = asked.work
        with self._dispatch_part:
            try:
                self._finish(asked)
            except NonFiniteError:
                # That a row fits no grid may be what somebody wrongly says.
                self._check_noted(asked)
                raise
            self._check_noted(asked)
            self.usage.coarsened_rows += work.coarsened_rows
            return work.result()

    def count_own(self, pairs: int) -> None:
        """See `ExpertRunner.count_own`."""
        if self._view.local_worker is not None:
            self.usage.activations[self._view.local_worker] += pairs

    def close(self) -> None:
        """Drop all connections, and what is on its way."""
        self._network.close()

    def _next_view(self, lost: PassLost | None) -> Standing:
        """Wait until every expert has a holder again."""
        started_s = self._clock()
        while True:
            standing = self._standing()
            view = standing.view
            waited_s = self._clock() - started_s
            if view.is_complete and (lost is None or view.epoch > self._view.epoch):
                if lost is not None and self._tell is not None:
                    self._tell(PassRepeated(lost.layer, view.epoch, waited_s))
                return standing
            if waited_s >= self._patience.view_wait_s:
                break
            self._network.pause(_VIEW_POLL_S)
        if lost is not None and lost.refused:
            raise WorkerRefused(f"{lost.why}; no other worker holds its experts")
        found = lost.why if lost is not None else "experts that no worker holds"
        advice = standing.missing or "Start that worker again, or plan with replicas."
        raise WorkerLost(f"{found}. {advice}")

    def _take(self, view: ClusterView) -> None:
        """Work on this view from now on."""
        self._view = view
        self._seen: Standing | None = None
        self._around = ALL_WELL
        plan = view.plan
        self._wire_forms = plan.wire_forms()
        self._choose = {layer: partial(self._choose_in, row) for row, layer in enumerate(plan.moe_layers)}
        self._worker_of_tier = view.worker_of_tier
        self._left_out = NOBODY
        self._holders: Sequence[LayerHolders] = view.holders.layers
        self._costs = _scaled(view, self._factors)
        costs = view.costs
        self._pace.expect(
            [(float(costs.ask_s[w.tiers[0]]), float(costs.expert_s[w.tiers[0]])) for w in plan.workers]
        )
        self.usage.activations += [0] * (len(view.names) - len(self.usage.activations))
        self._terms = Terms(
            names=view.names,
            request_ids=self._request_ids,
            coarser=fixed_point.coarser,
            max_coarsenings=fixed_point.MAX_COARSENINGS,
            max_rows=self._max_rows,
            patience=self._patience,
            pace=self._pace,
            local=view.local_worker,
            tell=self._tell,
        )
        self._network.match(view)
        present = set(range(len(view.names))) - view.absent - {view.local_worker}
        self._unreachable = frozenset(present - set(view.addresses))

    def _reprice(self, now_s: float) -> None:
        """Let workers that have become slow cost more, where others hold the same."""
        self._pace_due_s = now_s + _PACE_S
        slow = self._pace.factors(now_s)
        factors = {worker: factor for worker, factor in slow.items() if worker in self._view.sharing}
        if factors == self._factors:
            return
        for worker, factor in factors.items():
            if worker not in self._factors and self._tell is not None:
                self._tell(Slowed(self._view.names[worker], factor))
        self._factors = factors
        self._costs = _scaled(self._view, factors)

    def _look(self) -> Around:
        """The news of the workers, as far as they concern this pass's view."""
        standing = self._standing()
        if standing is not self._seen:
            self._seen = standing
            gone = standing.dead | self._unreachable
            is_mended = False
            if standing.view is not self._view:
                is_mended = not standing.view.orphans(standing.suspects).any()
                newer = standing.view.addresses
                gone |= {w for w, address in self._view.addresses.items() if newer.get(w) != address}
            self._around = Around(gone, standing.suspects, standing.pongs, is_mended)
        return self._around

    def _layer_sum(self, layer: int, rows: ExpertRows, choose: Choose) -> LayerSum:
        hidden, expert_ids, _, exponents = rows
        return LayerSum(layer, expert_ids, exponents, hidden.shape[1], choose, self._terms, self._look())

    def _begin(self, asked: Asked) -> None:
        now_s = self._clock()
        self._look_by_s = now_s + _LOOK_ANYWAY_S
        self._send(asked.work.begin(now_s), asked)

    def _finish(self, asked: Asked) -> None:
        """Compute what is this process's own, and wait for the rest."""
        while True:
            while asked.here:
                self._compute(asked.here.pop(), asked)
            if asked.work.finished:
                return
            if asked.until_s is not None:
                give_up_waiting(asked, self._look().suspects, self._clock())
            self._wait(asked)

    def _check_noted(self, asked: Asked) -> None:
        if self._checks is not None:
            self._checks.check(asked, self._view)

    def _sum_by_others(
        self, layer: int, rows: ExpertRows, never: int, noted: list[Answer], until_s: float
    ) -> tuple[Ints, Ints]:
        """See `checks.SumByOthers`."""

        def choose(expert_ids: Ints, left_out: frozenset[int]) -> NDArray[np.integer]:
            return self._choose[layer](expert_ids, left_out | {never})

        check = Asked(layer, rows, self._layer_sum(layer, rows, choose), noted=noted, until_s=until_s)
        self._begin(check)
        self._finish(check)
        return check.work.result()

    def _choose_in(self, row: int, expert_ids: Ints, left_out: frozenset[int]) -> NDArray[np.integer]:
        """The worker of each expert of a layer, by the layer's row in the plan."""
        if left_out != self._left_out:
            self._holders = self._view.without(left_out).layers
            self._left_out = left_out
        return self._worker_of_tier.take(assign_experts(expert_ids, self._holders[row], self._costs))

    def _send(self, actions: Sequence[Action], asked: Asked) -> None:
        """Send what is for other workers, and note what is for this process."""
        for action in actions:
            if not isinstance(action, Ask):
                self._network.reopen(action.worker)
                continue
            self._count(action)
            if action.worker == self._view.local_worker:
                asked.here.append(action)
                continue
            with self._wire_part:
                if asked.wire is None:
                    asked.wire = as_sent(asked.rows.hidden, self._wire_forms[asked.layer])
                rows = rows_of(action, asked.rows, asked.wire)
                self.usage.messages += 1
                self.usage.sent_bytes += rows.hidden.nbytes
                try:
                    self._network.send(action.worker, action.request_id, self._view.epoch, asked.layer, rows)
                    continue
                except WorkerLost:  # its queue is full of what was asked before and is not waited for
                    self._network.reopen(action.worker)
            self._send(asked.work.busy(action.worker, action.request_id, self._clock()), asked)

    def _count(self, ask: Ask) -> None:
        self.usage.activations[ask.worker] += ask.pairs

    def _compute(self, ask: Ask, asked: Asked) -> None:
        if self._local is None:
            raise WorkerRefused("the plan puts experts on the head, but the head was started without any")
        with self._local_experts_part:
            part = self._local.forward(asked.layer, rows_of(ask, asked.rows, asked.rows.hidden))
        if asked.until_s is not None:
            asked.noted.append(Answer(ask, part.values, part.saturated))
        actions = asked.work.partial(ask.worker, ask.request_id, part.values, part.saturated, self._clock())
        self._send(actions, asked)

    def _wait(self, asked: Asked) -> None:
        """Until something arrives or is due, but no longer than news may wait."""
        work = asked.work
        with self._remote_wait_part:
            wait_s = min(max(0.0, work.wake_at_s() - self._clock()), LOOK_S)
            workers = self._network.wait(wait_s)
        now_s = self._clock()
        for worker in workers:
            self._send(self._receive(worker, asked, now_s), asked)
        if workers and now_s < self._look_by_s:
            return
        self._look_by_s = now_s + _LOOK_ANYWAY_S
        for worker in work.doubted():
            work.carried(worker, self._network.carried_bytes(worker), now_s)
        self._send(work.tick(now_s, self._look()), asked)

    def _receive(self, worker: int, asked: Asked, now_s: float) -> list[Action]:
        """Handle the next message of `worker`. If it has sent more, the next wait says so again."""
        work = asked.work
        try:
            with self._wire_part:
                reply = self._network.receive(worker)
        except WireError as error:
            self._network.reopen(worker)
            return work.refused(worker, error.request_id, f"it sent what is no answer: {error}", now_s)
        if isinstance(reply, ForwardReply):
            self.usage.received_bytes += reply.values.nbytes
            if self._checks is not None:
                self._checks.note(asked, worker, reply)
            return work.partial(worker, reply.request_id, reply.values, reply.saturated, now_s)
        if isinstance(reply, ErrorReply):
            if reply.code == ErrorCode.BUSY:
                return work.busy(worker, reply.request_id, now_s)
            return work.refused(worker, reply.request_id, f"{reply.message} ({reply.code})", now_s)
        return []


def fixed(view: ClusterView) -> Stand:
    """The standing of workers that nobody watches."""
    standing = Standing(view)
    return lambda: standing


def unwatched(plan: Plan, clients: Mapping[str, WorkerClient]) -> tuple[Stand, Connections]:
    """What a dispatcher needs of workers that nobody watches, each reached already."""
    indices = {worker.name: index for index, worker in enumerate(plan.workers)}
    addresses = {indices[name]: WorkerAddress(c.endpoint, "", None, 0) for name, c in clients.items()}
    return fixed(ClusterView(plan, addresses=addresses)), Connections(lambda name, _: clients[name])


def _scaled(view: ClusterView, factors: dict[int, float]) -> ReplicaCosts:
    """The view's costs, those of slow workers as many times higher."""
    if not factors:
        return view.costs
    scale = np.array([factors.get(worker, 1.0) for worker in view.worker_of_tier[:-1].tolist()])
    return ReplicaCosts(view.costs.ask_s * scale, view.costs.expert_s * scale)
