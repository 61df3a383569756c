"""Orders to hold or drop experts: sent until they are taken, looked after until they are done."""

from __future__ import annotations

import math
from dataclasses import dataclass

from placement.experts import Experts, minus
from transport.messages import Drop, Held, Hold, random_id

# Between two sendings of the same order: until it is taken, and until it is done.
_UNTIL_TAKEN_S = 0.2
_UNTIL_DONE_S = 1.0
# Orders that nothing more happens to, and requests that nobody answered: the newest are remembered.
_ENDED_REMEMBERED = 256
_ASKED_REMEMBERED = 1024

REFUSED_S, REFUSED_MOST_S = 2.0, 60.0
"""Who refuses an order is given no other for the first, then twice as long each time, up to the second."""


@dataclass(slots=True)
class Order:
    """One order to one worker. `taken`: the worker serves what it is to hold, if only from its disk."""

    number: int
    worker: int
    experts: Experts
    rate_bytes_per_s: int
    is_drop: bool
    taken: bool = False
    done: bool = False
    answer: Held | None = None
    refusal: str = ""
    _sent_s: float = -math.inf

    def message(self, request_id: int) -> Hold | Drop:
        if self.is_drop:
            return Drop(request_id, self.number, self.experts)
        return Hold(request_id, self.number, self.experts, self.rate_bytes_per_s)

    @property
    def is_ended(self) -> bool:
        return self.done or bool(self.refusal)

    def is_due(self, now_s: float) -> bool:
        if self.is_ended:
            return False
        return now_s >= self._sent_s + (_UNTIL_DONE_S if self.taken else _UNTIL_TAKEN_S)

    def sent(self, now_s: float) -> None:
        self._sent_s = now_s


class Orders:
    """The orders of a run, by number: all that are under way, and the last that are not."""

    def __init__(self) -> None:
        self._orders: dict[int, Order] = {}
        self._asked: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._orders)

    def give(
        self, worker: int, experts: Experts, *, rate_bytes_per_s: int = 0, is_drop: bool = False
    ) -> Order:
        if len(self._orders) >= _ENDED_REMEMBERED:
            ended = [number for number, order in self._orders.items() if order.is_ended]
            for number in ended[: max(0, len(ended) + 1 - _ENDED_REMEMBERED)]:
                del self._orders[number]
        order = Order(random_id(), worker, experts, rate_bytes_per_s, is_drop)
        self._orders[order.number] = order
        return order

    def due(self, now_s: float) -> list[Order]:
        """Those to be sent now."""
        return [order for order in self._orders.values() if order.is_due(now_s)]

    def send(self, order: Order, request_id: int, now_s: float) -> Hold | Drop:
        """The message of an order, as it leaves now."""
        order.sent(now_s)
        self._asked[request_id] = order.number
        if len(self._asked) > _ASKED_REMEMBERED:
            del self._asked[next(iter(self._asked))]
        return order.message(request_id)

    def answered(self, answer: Held) -> Order | None:
        """The order that this answers, if it is one of ours."""
        self._asked.pop(answer.request_id, None)
        order = self._orders.get(answer.order)
        if order is not None:
            order.taken, order.done, order.answer = True, answer.done, answer
        return order

    def refused(self, request_id: int, why: str) -> Order | None:
        """The order that was refused, if the request was one."""
        order = self._orders.get(self._asked.pop(request_id, 0))
        if order is not None:
            order.refusal = why
        return order

    def withdraw(self, order: Order) -> None:
        """Send it no more, and wait for no answer; who has it already is not told."""
        self._orders.pop(order.number, None)

    def forget(self, worker: int) -> None:
        """A worker that is gone, or started anew, knows of no order."""
        self._orders = {n: order for n, order in self._orders.items() if order.worker != worker}

    def cancel_drops(self, worker: int, experts: Experts) -> None:
        """A worker is to hold again what it was perhaps told to drop."""
        for order in self._orders.values():
            if order.worker == worker and order.is_drop and not order.is_ended:
                order.experts = minus(order.experts, experts)
                order.done = not order.experts

    def holds(self, worker: int) -> list[Experts]:
        """What a worker was told to hold since it was greeted, and did not refuse."""
        return [
            order.experts
            for order in self._orders.values()
            if order.worker == worker and not order.is_drop and not order.refusal
        ]

    def get(self, number: int) -> Order | None:
        return self._orders.get(number)
