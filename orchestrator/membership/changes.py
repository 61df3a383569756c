"""The plan in use, and how it becomes another: rescues, the orders they need, what is let go of afterwards.

No sockets and no clock, like `membership.py`, which says who is lost and sends the orders. docs/survival.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.membership.events import Refused, Rescued, Tell
from orchestrator.membership.orders import REFUSED_MOST_S, REFUSED_S, Order, Orders
from orchestrator.membership.rescue import (
    BoxRoom,
    Rescue,
    head_worker,
    loaded,
    next_plan,
    survive_again,
)
from placement.experts import Experts, minus
from placement.plan import LOCAL_WORKER, Plan
from transport.messages import ErrorReply, Held

BEHIND_S = 1.0
"""After a loss was mended, before further copies are loaded behind."""
KEEP_S = 30.0
"""A worker is back for so long before others let go of what they took on for it: it may come and go."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Who is lost now.

    Attributes:
        workers: others are to stand in for them.
        is_settled: somebody is dead, and nobody is still on the way.
        epoch: of the newest view.
    """

    workers: frozenset[int]
    is_settled: bool
    epoch: int


@dataclass(slots=True)
class _Later:
    """Experts to let go of, once no view before the one of `epoch` is in flight.

    `of_orders`: let go also of what an order has given it since and no plan says yet.
    `is_left_off`: it was taken for a change that is left off. It is kept while another change follows, which
    may want just that.
    """

    epoch: int
    worker: int
    experts: Experts
    of_orders: bool = True
    is_left_off: bool = False


@dataclass(slots=True)
class _Change:
    """A plan that is used once its orders are taken, or done if nothing waits for it."""

    rescue: Rescue
    lost: frozenset[int]
    orders: list[Order]
    is_behind: bool

    @property
    def is_ready(self) -> bool:
        return all(order.done if self.is_behind else order.taken for order in self.orders)

    @property
    def refusal(self) -> Order | None:
        return next((order for order in self.orders if order.refusal), None)


class PlanChanges:
    """One plan at a time, and at most one on the way.

    Args:
        plan: what each worker was started with.
        room: what each box can take on, by worker name, "head" for this process.

    Attributes:
        plan: to be used from the next view on.
        orders: all that were given.
        missing: why nobody can serve some experts, for people; empty where all have a holder.
    """

    def __init__(self, plan: Plan, room: Mapping[str, BoxRoom], tell: Tell) -> None:
        self.plan = plan
        self.orders = Orders()
        self.missing = ""
        self._room = dict(room)
        self._refused_until_s: dict[str, float] = {}
        self._refused_for_s: dict[str, float] = {}
        self._tell = tell
        self._change: _Change | None = None
        self._drops: list[_Later] = []
        self._not_loaded: dict[int, Order] = {}
        self._behind_at_s = math.inf
        self._lost: frozenset[int] = frozenset()
        self._steady_at_s: dict[int, float] = {}

    @property
    def is_under_way(self) -> bool:
        return self._change is not None

    def name_of(self, worker: int) -> str:
        """By index; "head" where no other process has it."""
        workers = self.plan.workers
        return workers[worker].name if worker < len(workers) else LOCAL_WORKER

    def outlook(self, lost: frozenset[int]) -> str:
        """What becomes of a text when these are lost, for people."""
        rescue = next_plan(self.plan, lost, self._rooms(), self._steady_at_s)
        if rescue.missing:
            return "the text waits, since no other box can serve its experts"
        if rescue.holds:
            return "the text goes on, others read its experts from their model files"
        return "the text goes on, others hold its experts too"

    def reconsider(self, loss: Loss, now_s: float) -> None:
        """After a loss or a return: who must take experts on, and who may let go of them."""
        for worker in self._lost - loss.workers:
            self._steady_at_s[worker] = now_s + KEEP_S
        self._lost = loss.workers
        for worker in loss.workers:
            self._steady_at_s.pop(worker, None)
        change = self._change
        if change is not None and not change.is_behind and not change.refusal and loss.workers <= change.lost:
            # It is as far as that. Who is back so soon may be gone again before another one is.
            return
        rescue = next_plan(self.plan, loss.workers, self._rooms(), self._steady_at_s)
        self._withdraw(loss)
        if rescue.missing:
            self.missing = rescue.lacks()
            return
        self.missing = ""
        if rescue.plan is not self.plan:
            self._begin(rescue, loss, now_s, is_behind=False)
        else:
            self._load_behind(loss, now_s)

    def tick(self, loss: Loss, now_s: float) -> None:
        """Let go of what was taken on for workers that are back for long; begin with further copies.

        Who refused an order is asked again after a while.
        """
        if self._change is None:
            able = [name for name, until_s in self._refused_until_s.items() if now_s >= until_s]
            for name in able:
                del self._refused_until_s[name]
            if able:
                self.reconsider(loss, now_s)
        steady = [worker for worker, at_s in self._steady_at_s.items() if now_s >= at_s]
        if steady and self._change is None:
            for worker in steady:
                del self._steady_at_s[worker]
            self.reconsider(loss, now_s)
        if now_s >= self._behind_at_s and self._change is None:
            self._behind_at_s = math.inf
            rescue = survive_again(self.plan, loss.workers, self._rooms())
            if rescue.plan is not self.plan:
                self._begin(rescue, loss, now_s, is_behind=True)

    def held(self, reply: Held, loss: Loss, now_s: float) -> Order | None:
        """An order was answered; which, if it is one of ours."""
        order = self.orders.answered(reply)
        if order is None:
            return None
        if self._not_loaded.get(order.worker) is order:
            self._see_loaded(order)
        self._advance(loss, now_s)
        return order

    def refused(self, worker: int, reply: ErrorReply, loss: Loss, now_s: float) -> None:
        """What was refused may have been an order."""
        order = self.orders.refused(reply.request_id, reply.message)
        if order is None:
            return
        name = self.name_of(worker)
        self._tell(Refused(name, f"an order: {reply.message}"))
        if not order.is_drop:
            # It takes nothing on for now; others may.
            for_s = self._refused_for_s.get(name, REFUSED_S)
            self._refused_until_s[name] = now_s + for_s
            self._refused_for_s[name] = min(2 * for_s, REFUSED_MOST_S)
        self._advance(loss, now_s)

    def drop_beyond_plan(self, worker: int, loss: Loss) -> None:
        """Let a worker drop, once no older view is in flight, all that the plan does not give it.

        What it was ordered to hold meanwhile it keeps.
        """
        beyond = _beyond(self.plan, self.name_of(worker))
        self._drops.append(_Later(loss.epoch + 1, worker, beyond, of_orders=False))

    def drop_unused(self, oldest_epoch: int) -> None:
        """Give the orders to drop that are due. `oldest_epoch`: of the views in flight."""
        if not self._drops:
            return
        is_rescuing = self._change is not None and not self._change.is_behind
        more_follows = is_rescuing or self._behind_at_s < math.inf
        due = [d for d in self._drops if d.epoch <= oldest_epoch and not (d.is_left_off and more_follows)]
        self._drops = [drop for drop in self._drops if drop not in due]
        plans = [self.plan, *([self._change.rescue.plan] if self._change is not None else [])]
        for drop in due:
            # What was let go of may have been taken on again since.
            name = self.name_of(drop.worker)
            wanted: list[Experts] = [
                plan.experts_of(name) for plan in plans if name in {worker.name for worker in plan.workers}
            ]
            if not drop.of_orders:
                wanted += self.orders.holds(drop.worker)
            unused: Experts = drop.experts
            for each in wanted:
                unused = minus(unused, each)
            if unused:
                self.orders.give(drop.worker, unused, is_drop=True)

    def _begin(self, rescue: Rescue, loss: Loss, now_s: float, *, is_behind: bool) -> None:
        for worker, experts in rescue.holds.items():
            self.orders.cancel_drops(worker, experts)
        orders = [self.orders.give(worker, experts) for worker, experts in rescue.holds.items()]
        self._change = _Change(rescue, loss.workers, orders, is_behind)
        if not orders:
            self._advance(loss, now_s)

    def _withdraw(self, loss: Loss) -> None:
        """Leave off what was on the way. No view has it, so what was taken for it may go at once."""
        if self._change is not None:
            for order in self._change.orders:
                self.orders.withdraw(order)
                if not order.refusal:
                    left_off = _Later(loss.epoch, order.worker, order.experts, is_left_off=True)
                    self._drops.append(left_off)
            self._change = None

    def _advance(self, loss: Loss, now_s: float) -> None:
        """Use the plan that was prepared, once its orders are far enough."""
        change = self._change
        if change is None:
            return
        if change.refusal is not None:
            self.reconsider(loss, now_s)
            return
        if not change.is_ready:
            return
        self._change = None
        self.plan = change.rescue.plan
        # Once no pass uses a view before the next one.
        self._drops += [_Later(loss.epoch + 1, *drop) for drop in change.rescue.drops.items()]
        for order in change.orders:
            self._refused_for_s.pop(self.name_of(order.worker), None)
            self._see_loaded(order)
        if change.is_behind:
            return
        for order in change.orders:
            sizes = {layer.index: layer.expert_bytes for layer in self.plan.layers}
            number = sum(len(ids) for ids in order.experts.values())
            num_bytes = sum(sizes[layer] * len(ids) for layer, ids in order.experts.items())
            self._tell(Rescued(self.name_of(order.worker), number, num_bytes))
        self._load_behind(loss, now_s)

    def _see_loaded(self, order: Order) -> None:
        """Whether what a worker has taken on last costs what its memory does, of an order in the plan."""
        self._not_loaded[order.worker] = order
        if order.done:
            del self._not_loaded[order.worker]
            if order.answer is not None and not order.answer.missing_bytes:
                self.plan = loaded(self.plan, [order.worker])

    def _load_behind(self, loss: Loss, now_s: float) -> None:
        """More copies of what a further loss would take, soon."""
        if loss.is_settled:
            self._behind_at_s = now_s + BEHIND_S

    def _rooms(self) -> dict[int, BoxRoom]:
        indices = {worker.name: index for index, worker in enumerate(self.plan.workers)}
        indices[LOCAL_WORKER] = head_worker(self.plan)
        able = {name: room for name, room in self._room.items() if name not in self._refused_until_s}
        return {indices[name]: room for name, room in able.items() if name in indices}


def _beyond(plan: Plan, name: str) -> Experts:
    """All experts that a plan does not give a worker."""
    given = plan.experts_of(name)
    every = range(plan.num_experts)
    left = {layer: set(every).difference(given.get(layer, ())) for layer in plan.moe_layers}
    return {layer: tuple(sorted(ids)) for layer, ids in left.items() if ids}
