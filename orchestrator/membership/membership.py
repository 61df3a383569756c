"""Which workers take part: greetings, heartbeats, suspicion, death and return, and the views that follow.

No sockets and no clock: what came and the time go in; messages to send, events and a `Standing` come out.

A worker is *joining* until it was greeted and is ready, then *alive*. After a moment of silence, or when its
connection closes, it is *suspect*: others are asked what it owes. If the silence lasts, or no new connection
comes about, it is *dead*, and the next view does without it. Whoever answers again is greeted again and
takes part from the next view on. docs/membership.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from itertools import count

from orchestrator.dispatch.view import ClusterView, WorkerAddress
from orchestrator.membership.events import (
    Cleared,
    Died,
    Gone,
    Joined,
    Refused,
    Rescued,
    Returned,
    Suspected,
    Tell,
)
from orchestrator.membership.orders import Order, Orders
from orchestrator.membership.rescue import (
    BoxRoom,
    Rescue,
    head_worker,
    loaded,
    next_plan,
    survive_again,
)
from orchestrator.membership.standing import PongSeen, Standing
from placement.patience import Patience
from placement.plan import LOCAL_WORKER, Plan
from transport.messages import (
    Drop,
    ErrorReply,
    Experts,
    Held,
    Hello,
    HelloReply,
    Hold,
    Ping,
    Pong,
    Reply,
    WorkerState,
)
from workers.formats.identity import compared

PULSE_S = 0.05
"""Between two pings of a worker that takes part."""
GREET_S, GREET_GONE_S = 0.2, 1.0
"""Between two greetings of a worker that does not; and of one that has been away for long."""
GONE_S = 10.0
"""After which nobody waits for a dead worker."""
CLOSED_S = 0.25
"""A connection that closed and has not come back by then: the worker is dead."""
COOL_OFF_S = 10.0
"""A worker that was given up is left alone for so long, then for twice as long, and so on."""
BEHIND_S = 1.0
"""After a loss was mended, before further copies are loaded behind."""
_PINGS_REMEMBERED = 64


class Condition(Enum):
    JOINING = auto()
    ALIVE = auto()
    SUSPECT = auto()
    DEAD = auto()


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


@dataclass(frozen=True, slots=True)
class Expected:
    """What every worker must say it serves. What either end does not know of the files is not compared.

    `identity`: as `workers.formats.identity.told` gives it.
    """

    fingerprint: str
    dtype: str
    identity: str = ""


@dataclass(slots=True)
class _Member:
    name: str
    address: WorkerAddress | None = None
    condition: Condition = Condition.JOINING
    heard_s: float = -math.inf
    pinged_s: float = -math.inf
    greeted_s: float = -math.inf
    died_s: float = -math.inf
    closed_s: float = math.inf
    not_before_s: float = -math.inf
    cool_off_s: float = COOL_OFF_S
    instance: int = 0
    last_instance: int = 0
    is_gone: bool = False
    is_missed: bool = False
    pong: PongSeen | None = None
    pings: dict[int, float] = field(default_factory=dict)
    catching_up: Order | None = None
    text: str = ""
    told: str = ""

    @property
    def takes_part(self) -> bool:
        return self.condition in (Condition.ALIVE, Condition.SUSPECT)


@dataclass(slots=True)
class _Later:
    """Experts to let go of, once no view before the one of `epoch` is in flight.

    `of_orders`: also what was ordered since, for something that no plan says yet, is to be let go of.
    """

    epoch: int
    worker: int
    experts: Experts
    of_orders: bool = True


@dataclass(slots=True)
class _Change:
    """A plan that is used once its orders are taken, or done if nothing waits for it."""

    rescue: Rescue
    orders: list[Order]
    is_behind: bool

    @property
    def is_ready(self) -> bool:
        return all(order.done if self.is_behind else order.taken for order in self.orders)

    @property
    def refusal(self) -> Order | None:
        return next((order for order in self.orders if order.refusal), None)


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
        self._plan = plan
        self._alone = alone
        self._expected = expected
        self._session = session
        self._tell = tell
        self._patience = patience if patience is not None else Patience()
        self._room = dict(room or {})
        self._join_by_s = now_s + join_s
        self._request_ids = count(1)
        self._orders = Orders()
        self._change: _Change | None = None
        self._drops: list[_Later] = []
        self._not_loaded: dict[int, Order] = {}
        self._behind_at_s = math.inf
        self._missing = ""
        self._is_stale = True
        self._wake_s = now_s
        self._oldest_epoch: int | None = None
        self._has_begun = False
        self._members: dict[int, _Member] = {}
        self._add_members(addresses)
        self._view = ClusterView(plan, frozenset(self._members), {})
        self._standing = Standing(self._view, dead=frozenset(self._members), missing=self._waiting())

    @property
    def standing(self) -> Standing:
        return self._standing

    @property
    def progress(self) -> dict[str, str]:
        """What workers that do not take part yet said last, by name."""
        return {member.name: member.text for member in self._members.values() if not member.takes_part}

    def name_of(self, worker: int) -> str:
        """By index; "head" where no other process has it."""
        member = self._members.get(worker)
        return member.name if member is not None else LOCAL_WORKER

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
                member.heard_s += late_s
                member.closed_s += late_s
            changed |= self._judge(worker, member, now_s)
            actions += self._due(worker, member, now_s)
        actions += self._orders_due(now_s)
        if now_s >= self._join_by_s and not self._has_begun:
            self._has_begun = changed = True
        if self._drops:
            self._drop_unused()
        if changed:
            self._reconsider(now_s)
        if now_s >= self._behind_at_s and self._change is None:
            self._behind_at_s = math.inf
            self._begin(survive_again(self._plan, self._lost(), self._rooms()), now_s, is_behind=True)
        self._publish(now_s)
        self._wake_s = now_s + PULSE_S
        return actions

    def received(self, worker: int, reply: Reply, now_s: float) -> list[Action]:
        """A worker's answer; `worker` is `head_worker` for this process's own to an order."""
        if isinstance(reply, Held):
            self._held(reply, now_s)
        elif isinstance(reply, ErrorReply):
            self._order_refused(worker, reply, now_s)
        elif worker in self._members:
            member = self._members[worker]
            if isinstance(reply, Pong):
                self._pong(worker, member, reply, now_s)
            elif isinstance(reply, HelloReply):
                self._greeted(worker, member, reply, now_s)
        actions = self._orders_due(now_s)
        self._publish(now_s)
        return actions

    def broken(self, worker: int, why: str, now_s: float) -> None:
        """A worker sent what is no answer, or does not let this head in."""
        member = self._members[worker]
        # One that took part before knows the key: it hangs, or the connection does.
        if member.takes_part or not member.last_instance:
            self._say_once(member, why)

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
                if for_good:
                    member.not_before_s = math.inf
                elif member.takes_part:
                    member.not_before_s = now_s + member.cool_off_s
                    member.cool_off_s *= 2
                if member.takes_part:
                    self._die(worker, member, why, now_s)
                    self._reconsider(now_s)
        self._publish(now_s)

    def reach(self, name: str, address: WorkerAddress) -> int:
        """A worker is reached there from now on; returns its index. It is greeted like any other."""
        for worker, member in self._members.items():
            if member.name == name:
                member.address = address
                member.greeted_s = -math.inf
                return worker
        raise ValueError(f"no worker of the plan is named {name!r}")

    def change(self, plan: Plan, addresses: Mapping[str, WorkerAddress], now_s: float) -> bool:
        """Use another plan from the next view on; its workers hold what it says already.

        Known workers keep their indices, new ones come last. Its epoch must be the one after that of the view
        in use: else that plan was made from another, or a rescue is on its way, and nothing changes.
        """
        if plan.epoch != self._view.epoch + 1 or self._change is not None or self._is_stale:
            return False
        self._plan = plan
        self._add_members(addresses)
        self._reconsider(now_s)
        self._publish(now_s, must=True)
        return True

    def order(self, name: str, experts: Experts, *, rate_bytes_per_s: int = 0, is_drop: bool = False) -> int:
        """Let a worker, or "head", hold or drop experts; the number is for `ordered`."""
        workers = [worker for worker, member in self._members.items() if member.name == name]
        worker = workers[0] if workers else head_worker(self._plan)
        return self._orders.give(worker, experts, rate_bytes_per_s=rate_bytes_per_s, is_drop=is_drop).number

    def ordered(self, number: int) -> Held | None:
        """How far an order is, as its worker said last."""
        order = self._orders.get(number)
        return order.answer if order is not None else None

    def refusal(self, number: int) -> str:
        """Why a worker refused an order for good; empty where it did not."""
        order = self._orders.get(number)
        return order.refusal if order is not None else ""

    # One worker.

    def _judge(self, worker: int, member: _Member, now_s: float) -> bool:
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

    def _due(self, worker: int, member: _Member, now_s: float) -> Iterator[Action]:
        """Pings of those that take part, greetings of the others."""
        if member.address is None:
            return
        if member.takes_part:
            # A little early rather than a tick late.
            if now_s >= member.pinged_s + 0.8 * PULSE_S:
                yield self._ping(worker, member, now_s)
        elif now_s >= member.greeted_s + (GREET_GONE_S if member.is_gone else GREET_S):
            member.greeted_s = now_s
            yield Send(worker, Hello(next(self._request_ids), self._session))

    def _ping(self, worker: int, member: _Member, now_s: float) -> Send:
        member.pinged_s = now_s
        request_id = next(self._request_ids)
        member.pings[request_id] = now_s
        if len(member.pings) > _PINGS_REMEMBERED:
            del member.pings[next(iter(member.pings))]
        return Send(worker, Ping(request_id, self._session, self._oldest_epoch or 0))

    def _pong(self, worker: int, member: _Member, pong: Pong, now_s: float) -> None:
        sent_s = member.pings.pop(pong.request_id, None)
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
        member.heard_s = now_s
        if member.condition is Condition.SUSPECT and member.closed_s == math.inf:
            self._turn(member, Condition.ALIVE)
            self._tell(Cleared(member.name, silent_s))
            if member.is_missed:
                member.is_missed = False
                self._reconsider(now_s)
        if member.pong is None or sent_s > member.pong.sent_s:
            member.pong = PongSeen(
                sent_s=sent_s,
                received_id=pong.received_id,
                open_ids=pong.open_ids,
                computing_id=pong.computing_id,
                computing_s=pong.computing_s,
            )

    def _greeted(self, worker: int, member: _Member, reply: HelloReply, now_s: float) -> None:
        """It is taken in if it is who it should be, is ready, and has what the present plan wants of it."""
        if member.takes_part or now_s < member.not_before_s or member.address is None:
            return
        member.text = reply.text
        wrong = self._wrong(member, reply)
        if wrong:
            self._say_once(member, wrong)
            return
        if reply.state == WorkerState.FAILED:
            self._say_once(member, f"it could not load its experts: {reply.text}")
        if reply.state != WorkerState.READY:
            return
        if member.instance != reply.instance:
            member.instance = reply.instance
            self._orders.forget(worker)
            # It may have been started from an older plan. What it has already, it need not load.
            wanted = self._plan.experts_of(member.name)
            member.catching_up = self._orders.give(worker, wanted)
        member.heard_s = now_s
        order = member.catching_up
        if order is not None and order.refusal:
            member.catching_up, member.instance = None, 0
        elif order is None or order.taken:
            self._take_in(worker, member, now_s)

    def _take_in(self, worker: int, member: _Member, now_s: float) -> None:
        if member.last_instance:
            self._tell(Returned(member.name, member.last_instance != member.instance))
        elif self._oldest_epoch is not None:
            self._tell(Joined(member.name))
        assert member.address is not None
        member.address = replace(member.address, instance=member.instance)
        member.last_instance = member.instance
        self._turn(member, Condition.ALIVE)
        member.heard_s = now_s
        member.closed_s = math.inf
        member.is_gone = False
        member.pong = None
        member.told = member.text = ""
        member.catching_up = None
        if self._alone():
            beyond = _beyond(self._plan, member.name)
            self._drops.append(_Later(self._view.epoch + 1, worker, beyond, of_orders=False))
        self._reconsider(now_s)

    def _die(self, worker: int, member: _Member, why: str, now_s: float) -> None:
        self._turn(member, Condition.DEAD)
        member.is_missed = False
        member.died_s = now_s
        member.closed_s = math.inf
        member.greeted_s = now_s
        member.pong = None
        member.pings.clear()
        # What it was told to hold is asked for again when it comes back.
        member.instance = 0
        self._tell(Died(member.name, why))

    def _turn(self, member: _Member, condition: Condition) -> None:
        member.condition = condition
        self._is_stale = True

    def _wrong(self, member: _Member, reply: HelloReply) -> str:
        """How a worker differs from what the plan expects; empty if it does not."""
        expected = [
            ("name", member.name, reply.name),
            ("model fingerprint", self._expected.fingerprint, reply.fingerprint),
            ("dtype", self._expected.dtype, reply.dtype),
        ]
        expected += compared(self._expected.identity, reply.identity)
        for what, wanted, found in expected:
            if wanted != found:
                return f"it serves {what} {found}, expected {wanted}: start it from this plan and these files"
        return ""

    def _say_once(self, member: _Member, reason: str) -> None:
        if member.told != reason:
            member.told = reason
            self._tell(Refused(member.name, reason))

    # All of them: orders, losses, views.

    def _held(self, reply: Held, now_s: float) -> None:
        order = self._orders.answered(reply)
        if order is None:
            return
        if order.done and order.worker in self._not_loaded and self._not_loaded[order.worker] is order:
            del self._not_loaded[order.worker]
            self._plan = loaded(self._plan, [order.worker])
            self._is_stale = True
        member = self._members.get(order.worker)
        if member is not None and member.catching_up is order and not member.takes_part:
            self._take_in(order.worker, member, now_s)
        self._advance(now_s)

    def _order_refused(self, worker: int, reply: ErrorReply, now_s: float) -> None:
        order = self._orders.refused(reply.request_id, reply.message)
        if order is None:
            return
        name = self.name_of(worker)
        self._tell(Refused(name, f"an order: {reply.message}"))
        if not order.is_drop:
            # It takes nothing on; others may.
            self._room.pop(name, None)
        self._advance(now_s)

    def _orders_due(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        for order in self._orders.due(now_s):
            member = self._members.get(order.worker)
            if member is not None and (member.instance == 0 or member.address is None):
                continue
            message = self._orders.send(order, next(self._request_ids), now_s)
            actions.append(Here(order.worker, message) if member is None else Send(order.worker, message))
        return actions

    def _advance(self, now_s: float) -> None:
        """Use the plan that was prepared, once its orders are far enough."""
        change = self._change
        if change is None:
            return
        if change.refusal is not None:
            self._change = None
            self._reconsider(now_s)
            return
        if not change.is_ready:
            return
        self._change = None
        self._plan = change.rescue.plan
        self._is_stale = True
        for order in change.orders:
            if not change.is_behind:
                self._not_loaded[order.worker] = order
                sizes = {layer.index: layer.expert_bytes for layer in self._plan.layers}
                number = sum(len(ids) for ids in order.experts.values())
                num_bytes = sum(sizes[layer] * len(ids) for layer, ids in order.experts.items())
                self._tell(Rescued(self.name_of(order.worker), number, num_bytes))
        self._later_drop(change.rescue)
        if not change.is_behind:
            self._load_behind(now_s)

    def _reconsider(self, now_s: float) -> None:
        """After a loss or a return: who must take experts on, and who may let go of them."""
        if not self._has_begun:
            return
        self._is_stale = True
        lost = self._lost()
        rescue = next_plan(self._plan, lost, self._rooms())
        self._change = None
        if rescue.missing:
            self._missing = rescue.lacks()
            return
        self._missing = ""
        if rescue.plan is not self._plan:
            self._begin(rescue, now_s, is_behind=False)
        else:
            self._load_behind(now_s)

    def _begin(self, rescue: Rescue, now_s: float, *, is_behind: bool) -> None:
        if rescue.plan is self._plan:
            return
        for worker in rescue.holds:
            self._orders.cancel_drops(worker)
        orders = [self._orders.give(worker, experts) for worker, experts in rescue.holds.items()]
        self._change = _Change(rescue, orders, is_behind)
        if not orders:
            self._advance(now_s)

    def _load_behind(self, now_s: float) -> None:
        """More copies of what a further loss would take, soon, and unless somebody is still on the way."""
        conditions = [member.condition for member in self._members.values()]
        if Condition.DEAD in conditions and Condition.JOINING not in conditions:
            self._behind_at_s = now_s + BEHIND_S

    def _later_drop(self, rescue: Rescue) -> None:
        """Once no pass uses a view before the next one."""
        epoch = self._view.epoch + 1
        self._drops += [_Later(epoch, worker, experts) for worker, experts in rescue.drops.items()]

    def _drop_unused(self) -> None:
        oldest_epoch = self._view.epoch if self._oldest_epoch is None else self._oldest_epoch
        due = [drop for drop in self._drops if drop.epoch <= oldest_epoch]
        self._drops = [drop for drop in self._drops if drop.epoch > oldest_epoch]
        plans = [self._plan, *([self._change.rescue.plan] if self._change is not None else [])]
        for drop in due:
            # What was let go of may have been taken on again since.
            name = self.name_of(drop.worker)
            wanted: list[Mapping[int, tuple[int, ...]]] = [
                plan.experts_of(name) for plan in plans if name in _names(plan)
            ]
            if not drop.of_orders:
                wanted += self._orders.holds(drop.worker)
            used = {layer: {i for each in wanted for i in each.get(layer, ())} for layer in drop.experts}
            left = {layer: tuple(sorted(set(ids) - used[layer])) for layer, ids in drop.experts.items()}
            unused = {layer: ids for layer, ids in left.items() if ids}
            if unused:
                self._orders.give(drop.worker, unused, is_drop=True)

    def _publish(self, now_s: float, *, must: bool = False) -> None:
        """The standing that follows; a new view where it differs from the last one."""
        members = self._members
        pongs = {worker: member.pong for worker, member in members.items() if member.pong is not None}
        if not (self._is_stale or must):
            self._standing = replace(self._standing, pongs=pongs)
            return
        self._is_stale = False
        absent = frozenset(worker for worker, member in members.items() if not member.takes_part)
        addresses = {
            worker: member.address
            for worker, member in members.items()
            if member.takes_part and member.address is not None
        }
        view = self._view
        old = view.plan
        if must or absent != view.absent or addresses != view.addresses or not _same(self._plan, old):
            plan = replace(self._plan, epoch=max(self._plan.epoch, view.epoch + 1))
            view = self._view = ClusterView(plan, absent, addresses)
            self._plan = plan
            if view.is_complete and not self._has_begun:
                self._has_begun = True
        missing = "" if view.is_complete else self._missing or self._waiting()
        self._standing = Standing(
            view,
            frozenset(worker for worker, member in members.items() if member.condition is Condition.SUSPECT),
            absent,
            pongs,
            missing,
        )

    def _waiting(self) -> str:
        names = ", ".join(member.name for member in self._members.values() if not member.takes_part)
        return f"waiting for {names}"

    def _lost(self) -> frozenset[int]:
        """Those that others are to stand in for, also while they are only missed."""
        return frozenset(
            worker for worker, member in self._members.items() if member.is_missed or not member.takes_part
        )

    def _rooms(self) -> dict[int, BoxRoom]:
        indices = {member.name: worker for worker, member in self._members.items()}
        indices[LOCAL_WORKER] = head_worker(self._plan)
        return {indices[name]: room for name, room in self._room.items() if name in indices}

    def _add_members(self, addresses: Mapping[str, WorkerAddress]) -> None:
        asked = {worker.name for worker in self._plan.asked_workers}
        for worker, planned in enumerate(self._plan.workers):
            if planned.name in asked and worker not in self._members:
                self._members[worker] = _Member(planned.name, addresses.get(planned.name))


def _beyond(plan: Plan, name: str) -> Experts:
    """All experts that a plan does not give a worker."""
    given = plan.experts_of(name)
    every = range(plan.num_experts)
    left = {layer: set(every).difference(given.get(layer, ())) for layer in plan.moe_layers}
    return {layer: tuple(sorted(ids)) for layer, ids in left.items() if ids}


def _names(plan: Plan) -> Sequence[str]:
    return [worker.name for worker in plan.workers]


def _same(plan: Plan, other: Plan) -> bool:
    """Whether two plans differ in their epoch at most."""
    return plan is other or (plan.tiers == other.tiers and plan.holder_table == other.holder_table)
