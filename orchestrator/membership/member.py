"""One worker as the head sees it: what it must serve, its condition, and its signs of life."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from orchestrator.dispatch.view import WorkerAddress
from orchestrator.membership.orders import REFUSED_MOST_S, REFUSED_S, Order
from orchestrator.membership.standing import PongSeen
from transport.messages import HelloReply, Pong
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
_PINGS_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Expected:
    """What every worker must say it serves. What either end does not know of the files is not compared.

    `identity`: as `workers.formats.identity.told` gives it.
    """

    fingerprint: str
    dtype: str
    identity: str = ""

    def difference(self, name: str, reply: HelloReply) -> str:
        """How the worker that should have this name differs from what is expected; empty if it does not."""
        expected = [
            ("name", name, reply.name),
            ("model fingerprint", self.fingerprint, reply.fingerprint),
            ("dtype", self.dtype, reply.dtype),
        ]
        expected += compared(self.identity, reply.identity)
        for what, wanted, found in expected:
            if wanted != found:
                return f"it serves {what} {found}, expected {wanted}: start it from this plan and these files"
        return ""


class Condition(Enum):
    JOINING = auto()
    ALIVE = auto()
    SUSPECT = auto()
    DEAD = auto()


@dataclass(slots=True)
class Member:
    """A worker outside this process.

    Attributes:
        address: None until it is known.
        heard_s: its last sign of life.
        closed_s: since when its connection is closed.
        not_before_s: it is not taken in before then.
        instance: of the process that was greeted, 0 for none; `last_instance`: that took part last.
        is_gone: dead for so long that nobody waits for it.
        is_missed: silent for so long that others take on what it holds alone.
        pong: its newest, since it takes part.
        catching_up: the order that it is to take before it takes part.
        text: what it said of its loading. `told`: what people were told of it last.
    """

    name: str
    address: WorkerAddress | None = None
    condition: Condition = Condition.JOINING
    heard_s: float = -math.inf
    pinged_s: float = -math.inf
    greeted_s: float = -math.inf
    died_s: float = -math.inf
    closed_s: float = math.inf
    not_before_s: float = -math.inf
    instance: int = 0
    last_instance: int = 0
    is_gone: bool = False
    is_missed: bool = False
    pong: PongSeen | None = None
    catching_up: Order | None = None
    text: str = ""
    told: str = ""
    _cool_off_s: float = COOL_OFF_S
    _refused_for_s: float = REFUSED_S
    _pings: dict[int, float] = field(default_factory=dict)

    @property
    def takes_part(self) -> bool:
        return self.condition in (Condition.ALIVE, Condition.SUSPECT)

    def excuse(self, late_s: float, now_s: float) -> None:
        """Nobody listened for `late_s` until now: that is nobody's silence."""
        # What was taken in just now is not of that time.
        self.heard_s = min(self.heard_s + late_s, now_s)
        if self.closed_s < math.inf:
            self.closed_s = min(self.closed_s + late_s, now_s)

    def is_ping_due(self, now_s: float) -> bool:
        # A little early rather than a tick late.
        return self.takes_part and now_s >= self.pinged_s + 0.8 * PULSE_S

    def is_greeting_due(self, now_s: float) -> bool:
        between_s = GREET_GONE_S if self.is_gone else GREET_S
        return not self.takes_part and now_s >= self.greeted_s + between_s

    def pinged(self, request_id: int, now_s: float) -> None:
        """A ping leaves."""
        self.pinged_s = now_s
        self._pings[request_id] = now_s
        if len(self._pings) > _PINGS_REMEMBERED:
            del self._pings[next(iter(self._pings))]

    def asked_at_s(self, pong: Pong) -> float | None:
        """When the ping that this answers left; None where it was answered, or none of these was sent."""
        return self._pings.pop(pong.request_id, None)

    def heard(self, pong: Pong, sent_s: float, now_s: float) -> None:
        """Its process lives, by the answer to a ping that left at `sent_s`."""
        self.heard_s = now_s
        if self.pong is None or sent_s > self.pong.sent_s:
            self.pong = PongSeen(
                sent_s=sent_s,
                received_id=pong.received_id,
                open_ids=pong.open_ids,
                computing_id=pong.computing_id,
                computing_s=pong.computing_s,
            )

    def leave_alone(self, now_s: float, *, for_good: bool) -> None:
        """It does not get on, or lies: do not take it in for a while, twice as long each time."""
        if for_good:
            self.not_before_s = math.inf
        elif self.takes_part:
            self.not_before_s = now_s + self._cool_off_s
            self._cool_off_s *= 2

    def refuses(self, now_s: float) -> None:
        """It did not take the order to catch up: it is given another one later, later still each time."""
        self.catching_up, self.instance = None, 0
        self.not_before_s = now_s + self._refused_for_s
        self._refused_for_s = min(2 * self._refused_for_s, REFUSED_MOST_S)

    def take_in(self, now_s: float) -> None:
        """It takes part from now on."""
        self._refused_for_s = REFUSED_S
        assert self.address is not None
        self.address = replace(self.address, instance=self.instance)
        self.last_instance = self.instance
        self.condition = Condition.ALIVE
        self.heard_s = now_s
        self.closed_s = math.inf
        self.is_gone = False
        self.pong = None
        self.told = self.text = ""
        self.catching_up = None

    def die(self, now_s: float) -> None:
        """It is lost."""
        self.condition = Condition.DEAD
        self.is_missed = False
        self.died_s = self.greeted_s = now_s
        self.closed_s = math.inf
        self.pong = None
        self._pings.clear()
        # What it was told to hold is asked for again when it comes back.
        self.instance = 0
