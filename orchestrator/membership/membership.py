"""Which workers take part: greetings, heartbeats, suspicion, death and return, and the views that follow.

No sockets and no clock: what came and the time go in; messages to send, events and a `Standing` come out.

A worker is *joining* until it was greeted and is ready, then *alive*. After a moment of silence, or when its
connection closes, it is *suspect*: others are asked what it owes. If the silence lasts, or no new connection
comes about, it is *dead*, and the next view does without it. Whoever answers again is greeted again and
takes part from the next view on. docs/membership.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count

from orchestrator.dispatch.view import ClusterView, WorkerAddress
from orchestrator.membership.changes import Loss, PlanChanges
from orchestrator.membership.events import (
    Cleared,
    Died,
    Gone,
    Joined,
    Refused,
    Returned,
    Suspected,
    Tell,
)
from orchestrator.membership.member import CLOSED_S, GONE_S, PULSE_S, Condition, Expected, Member
from orchestrator.membership.rescue import BoxRoom, head_worker
from orchestrator.membership.standing import Standing
from placement.experts import Experts
from placement.patience import Patience
from placement.plan import Plan
from transport.messages import (
    Drop,
    ErrorReply,
    Held,
    Hello,
    HelloReply,
    Hold,
    Ping,
    Pong,
    Reply,
    WorkerState,
)


@dataclass(frozen=True, slots=True)
class Send:
    """A message for a worker's pulse endpoint."""

    worker: int
    message: Hello | Ping | Hold | Drop


@dataclass(frozen=True, slots=True)
class Here:
    """An order for this process's own experts."""

    worker: int
    order: Hold | Drop


Action = Send | Here


class Membership:
    """The workers of one plan, as one head sees them.

    Args:
        plan: what each worker was started with.
        addresses: where workers are reached, by name; more may follow (`reach`). Their instances are found
            out by greeting.
        room: what each box can take on, by worker name, "head" for this process.
        join_s: how long workers that were never seen are waited for before others take on their experts.
        alone: whether no other head asks these workers now: only then those that come are told to let go
            of what the plan does not give them.
    """

    def __init__(
        self,
        plan: Plan,
        addresses: Mapping[str, WorkerAddress],
        expected: Expected,
        *,
        session: int,
        tell: Tell,
        now_s: float,
        room: Mapping[str, BoxRoom] | None = None,
        patience: Patience | None = None,
        join_s: float = math.inf,
        alone: Callable[[], bool] = lambda: True,
    ) -> None:
        self._changes = PlanChanges(plan, room or {}, tell)
        self._alone = alone
        self._expected = expected
        self._session = session
        self._tell = tell
        self._patience = patience if patience is not None else Patience()
        self._join_by_s = now_s + join_s
        self._request_ids = count(1)
        self._is_stale = True
        self._wake_s = now_s
        self._oldest_epoch: int | None = None
        self._has_begun = False
        self._members: dict[int, Member] = {}
        self._add_members(addresses)
        self._view = ClusterView(plan, frozenset(self._members), {})
        self._standing = Standing(self._view, missing=self._waiting())

    @property
    def standing(self) -> Standing:
        return self._standing

    @property
    def progress(self) -> dict[str, str]:
        """What workers that do not take part yet said last, by name."""
        return {member.name: member.text for member in self._members.values() if not member.takes_part}

    def name_of(self, worker: int) -> str:
        """By index; "head" where no other process has it."""
        return self._changes.name_of(worker)

    def wake_at_s(self) -> float:
        """When `tick` must be called again at the latest."""
        return self._wake_s

    # What comes in.

    def tick(self, now_s: float, oldest_epoch: int | None) -> list[Action]:
        """What is due. `oldest_epoch`: of the views that passes in flight have, None before the first pass.

        Call it after all that has come was taken in. If the call is late, nobody has listened meanwhile, and
        that time does not count as anybody's silence.
        """
        late_s = max(0.0, now_s - self._wake_s)
        self._oldest_epoch = oldest_epoch
        actions: list[Action] = []
        changed = False
        for worker, member in self._members.items():
            if late_s > PULSE_S:
                member.excuse(late_s, now_s)
            changed |= self._judge(worker, member, now_s)
            actions += self._due(worker, member, now_s)
        actions += self._orders_due(now_s)
        if now_s >= self._join_by_s and not self._has_begun:
            self._has_begun = changed = True
        self._changes.drop_unused(self._view.epoch if oldest_epoch is None else oldest_epoch)
        if changed:
            self._reconsider(now_s)
        self._changes.tick(self._loss(), now_s)
        self._publish(now_s)
        self._wake_s = now_s + PULSE_S
        return actions

    def received(self, worker: int, reply: Reply, now_s: float) -> list[Action]:
        """A worker's answer; `worker` is `head_worker` for this process's own to an order."""
        if isinstance(reply, Held):
            self._held(reply, now_s)
        elif isinstance(reply, ErrorReply):
            self._changes.refused(worker, reply, self._loss(), now_s)
        elif worker in self._members:
            member = self._members[worker]
            if isinstance(reply, Pong):
                self._pong(worker, member, reply, now_s)
            elif isinstance(reply, HelloReply):
                self._greeted(worker, member, reply, now_s)
        actions = self._orders_due(now_s)
        self._publish(now_s)
        return actions

    def broken(self, worker: int, why: str) -> None:
        """A worker sent what is no answer."""
        self._say_once(self._members[worker], why)

    def turned_away(self, worker: int) -> None:
        """A worker did not let this head in."""
        member = self._members[worker]
        # One that took part before knows the key: it hangs or ends, or the connection does.
        if not member.last_instance:
            self._say_once(member, "it does not know this head's key, or speaks otherwise")

    def connected(self, worker: int, now_s: float) -> list[Action]:
        """A connection has come about."""
        member = self._members[worker]
        member.closed_s = math.inf
        if member.takes_part:
            return [self._ping(worker, member, now_s)]
        member.greeted_s = now_s
        return [Send(worker, Hello(next(self._request_ids), self._session))]

    def closed(self, worker: int, now_s: float) -> None:
        """The connection is closed: a worker that still runs connects again at once."""
        member = self._members[worker]
        if member.takes_part:
            member.closed_s = min(member.closed_s, now_s)
            if member.condition is Condition.ALIVE:
                self._turn(member, Condition.SUSPECT)
                self._tell(Suspected(member.name, 0.0))
            self._publish(now_s)

    def accused(self, name: str, why: str, now_s: float, *, for_good: bool) -> None:
        """Whoever asks it experts says that a worker does not get on, or lies."""
        for worker, member in self._members.items():
            if member.name == name:
                member.leave_alone(now_s, for_good=for_good)
                if member.takes_part:
                    self._die(worker, member, why, now_s)
                    self._reconsider(now_s)
        self._publish(now_s)

    def reach(self, worker: int, address: WorkerAddress) -> None:
        """A worker is reached there from now on, and greeted like any other."""
        if (member := self._members.get(worker)) is not None:
            member.address = address
            member.greeted_s = -math.inf

    def change(self, plan: Plan, now_s: float) -> bool:
        """Use another plan from the next view on; its workers hold what it says already.

        Known workers keep their indices, new ones come last. Its epoch must be the one after that of the view
        in use: else that plan was made from another, or a rescue is on its way, and nothing changes.
        """
        changes = self._changes
        if plan.epoch != self._view.epoch + 1 or changes.is_under_way or self._is_stale:
            return False
        changes.plan = plan
        self._add_members({})
        self._reconsider(now_s)
        self._publish(now_s, must=True)
        return True

    def order(self, name: str, experts: Experts, *, rate_bytes_per_s: int = 0, is_drop: bool = False) -> int:
        """Let a worker, or "head", hold or drop experts; the number is for `ordered`."""
        workers = [worker for worker, member in self._members.items() if member.name == name]
        worker = workers[0] if workers else head_worker(self._changes.plan)
        orders = self._changes.orders
        return orders.give(worker, experts, rate_bytes_per_s=rate_bytes_per_s, is_drop=is_drop).number

    def ordered(self, number: int) -> Held | None:
        """How far an order is, as its worker said last."""
        order = self._changes.orders.get(number)
        return order.answer if order is not None else None

    def refusal(self, number: int) -> str:
        """Why a worker refused an order for good; empty where it did not."""
        order = self._changes.orders.get(number)
        return order.refusal if order is not None else ""

    # One worker.

    def _judge(self, worker: int, member: Member, now_s: float) -> bool:
        """Suspect, miss or bury a silent worker; True if others are to take on what it holds alone."""
        if not member.takes_part:
            if member.condition is Condition.DEAD and not member.is_gone and now_s >= member.died_s + GONE_S:
                member.is_gone = True
                self._tell(Gone(member.name))
            return False
        silent_s = now_s - member.heard_s
        if now_s >= member.closed_s + CLOSED_S:
            self._die(worker, member, "its connection was closed", now_s)
            return True
        if silent_s >= self._patience.dead_after_s:
            self._die(worker, member, f"no sign of life for {silent_s:.1f} s", now_s)
            return True
        if member.condition is Condition.ALIVE and silent_s >= self._patience.suspect_after_s:
            self._turn(member, Condition.SUSPECT)
            self._tell(Suspected(member.name, silent_s))
        if silent_s >= self._patience.rescue_after_s and not member.is_missed:
            member.is_missed = True
            return True
        return False

    def _due(self, worker: int, member: Member, now_s: float) -> Iterator[Action]:
        """Pings of those that take part, greetings of the others."""
        if member.address is None:
            return
        if member.is_ping_due(now_s):
            yield self._ping(worker, member, now_s)
        elif member.is_greeting_due(now_s):
            member.greeted_s = now_s
            yield Send(worker, Hello(next(self._request_ids), self._session))

    def _ping(self, worker: int, member: Member, now_s: float) -> Send:
        request_id = next(self._request_ids)
        member.pinged(request_id, now_s)
        return Send(worker, Ping(request_id, self._session, self._oldest_epoch or 0))

    def _pong(self, worker: int, member: Member, pong: Pong, now_s: float) -> None:
        sent_s = member.asked_at_s(pong)
        if sent_s is None or not member.takes_part:
            return
        if pong.instance != member.instance:
            self._die(worker, member, "it was started again", now_s)
            self._reconsider(now_s)
            return
        if pong.state != WorkerState.READY:
            self._die(worker, member, f"it says that it is {pong.state}", now_s)
            self._reconsider(now_s)
            return
        silent_s = now_s - member.heard_s
        member.heard(pong, sent_s, now_s)
        if member.condition is Condition.SUSPECT and member.closed_s == math.inf:
            self._turn(member, Condition.ALIVE)
            self._tell(Cleared(member.name, silent_s))
            if member.is_missed:
                member.is_missed = False
                self._reconsider(now_s)

    def _greeted(self, worker: int, member: Member, reply: HelloReply, now_s: float) -> None:
        """It is taken in if it is who it should be, is ready, and has what the present plan wants of it."""
        if member.takes_part or now_s < member.not_before_s or member.address is None:
            return
        member.text = reply.text
        wrong = self._expected.difference(member.name, reply)
        if wrong:
            self._say_once(member, wrong)
            return
        if reply.state == WorkerState.FAILED:
            self._say_once(member, f"it could not load its experts: {reply.text}")
        if reply.state != WorkerState.READY:
            return
        if member.instance != reply.instance:
            member.instance = reply.instance
            self._changes.orders.forget(worker)
            # It may have been started from an older plan. What it has already, it need not load.
            wanted = self._changes.plan.experts_of(member.name)
            member.catching_up = self._changes.orders.give(worker, wanted)
        member.heard_s = now_s
        order = member.catching_up
        if order is not None and order.refusal:
            member.refuses(now_s)
        elif order is None or order.taken:
            self._take_in(worker, member, now_s)

    def _take_in(self, worker: int, member: Member, now_s: float) -> None:
        if member.last_instance:
            self._tell(Returned(member.name, member.last_instance != member.instance))
        elif self._oldest_epoch is not None:
            self._tell(Joined(member.name))
        member.take_in(now_s)
        self._is_stale = True
        if self._alone():
            self._changes.drop_beyond_plan(worker, self._loss())
        self._reconsider(now_s)

    def _die(self, worker: int, member: Member, why: str, now_s: float) -> None:
        member.die(now_s)
        self._is_stale = True
        then = self._changes.outlook(self._loss().workers) if self._has_begun else "it is waited for"
        self._tell(Died(member.name, why, then))

    def _turn(self, member: Member, condition: Condition) -> None:
        member.condition = condition
        self._is_stale = True

    def _say_once(self, member: Member, reason: str) -> None:
        if member.told != reason:
            member.told = reason
            self._tell(Refused(member.name, reason))

    # All of them: orders, losses, views.

    def _held(self, reply: Held, now_s: float) -> None:
        order = self._changes.held(reply, self._loss(), now_s)
        member = self._members.get(order.worker) if order is not None else None
        if order is not None and member is not None and member.catching_up is order and not member.takes_part:
            self._take_in(order.worker, member, now_s)

    def _reconsider(self, now_s: float) -> None:
        """After a loss or a return: who must take experts on, and who may let go of them."""
        self._is_stale = True
        if self._has_begun:
            self._changes.reconsider(self._loss(), now_s)

    def _orders_due(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        for order in self._changes.orders.due(now_s):
            member = self._members.get(order.worker)
            if member is not None and (member.instance == 0 or member.address is None):
                continue
            message = self._changes.orders.send(order, next(self._request_ids), now_s)
            actions.append(Here(order.worker, message) if member is None else Send(order.worker, message))
        return actions

    def _publish(self, now_s: float, *, must: bool = False) -> None:
        """The standing that follows; a new view where it differs from the last one."""
        members = self._members
        pongs = {worker: member.pong for worker, member in members.items() if member.pong is not None}
        old, plan = self._view.plan, self._changes.plan
        if not (self._is_stale or must or plan is not old):
            self._standing = replace(self._standing, pongs=pongs, missing=self._missing(self._view))
            return
        self._is_stale = False
        absent = frozenset(worker for worker, member in members.items() if not member.takes_part)
        addresses = {
            worker: member.address
            for worker, member in members.items()
            if member.takes_part and member.address is not None
        }
        view = self._view
        if must or absent != view.absent or addresses != view.addresses or not _same(plan, old):
            plan = replace(plan, epoch=max(plan.epoch, view.epoch + 1))
            view = self._view = ClusterView(plan, absent, addresses)
            if view.is_complete and not self._has_begun:
                self._has_begun = True
        self._changes.plan = view.plan
        self._standing = Standing(
            view,
            frozenset(worker for worker, member in members.items() if member.condition is Condition.SUSPECT),
            pongs,
            self._missing(view),
        )

    def _missing(self, view: ClusterView) -> str:
        return "" if view.is_complete else self._changes.missing or self._waiting()

    def _waiting(self) -> str:
        names = ", ".join(member.name for member in self._members.values() if not member.takes_part)
        return f"waiting for {names}"

    def _loss(self) -> Loss:
        """Those that others are to stand in for, also while they are only missed."""
        members = self._members
        conditions = {member.condition for member in members.values()}
        return Loss(
            frozenset(w for w, member in members.items() if member.is_missed or not member.takes_part),
            Condition.DEAD in conditions and Condition.JOINING not in conditions,
            self._view.epoch,
        )

    def _add_members(self, addresses: Mapping[str, WorkerAddress]) -> None:
        asked = {worker.name for worker in self._changes.plan.asked_workers}
        for worker, planned in enumerate(self._changes.plan.workers):
            if planned.name in asked and worker not in self._members:
                self._members[worker] = Member(planned.name, addresses.get(planned.name))


def _same(plan: Plan, other: Plan) -> bool:
    """Whether two plans differ in their epoch at most."""
    return plan is other or (plan.tiers == other.tiers and plan.holder_table == other.holder_table)
