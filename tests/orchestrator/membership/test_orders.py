"""Orders of a long run: those under way are all known, of the others the newest."""

from __future__ import annotations

from orchestrator.membership.orders import Orders
from transport.messages import Drop, Held


def test_a_long_run_remembers_what_is_under_way_and_the_last_of_the_rest() -> None:
    orders = Orders()
    waiting = orders.give(0, {3: (1,)})
    given = []
    for round_number in range(5000):
        order = orders.give(1, {3: (2,)}, is_drop=bool(round_number % 2))
        # One message of two is lost.
        orders.send(order, 2 * round_number + 1, 0.0)
        message = orders.send(order, 2 * round_number + 2, 0.0)
        orders.answered(Held(message.request_id, message.order, True, 0, ""))
        given.append(order)
    assert orders.due(0.0) == [waiting]
    assert orders.get(given[0].number) is None
    assert orders.get(given[-100].number) is given[-100]
    assert len(orders) < 300


def test_a_refusal_is_known_by_its_request() -> None:
    orders = Orders()
    order = orders.give(0, {3: (1,)})
    orders.send(order, 7, 0.0)
    orders.send(order, 8, 1.0)
    assert orders.refused(9, "no") is None
    assert orders.refused(7, "no room") is order
    assert order.refusal == "no room"
    assert orders.due(100.0) == []


def test_only_what_is_to_be_held_again_is_not_dropped() -> None:
    orders = Orders()
    some = orders.give(0, {3: (1, 2), 4: (5,)}, is_drop=True)
    same = orders.give(0, {3: (2,)}, is_drop=True)
    other = orders.give(1, {3: (2,)}, is_drop=True)
    orders.cancel_drops(0, {3: (2, 7)})
    assert orders.due(0.0) == [some, other]
    assert same.done
    message = orders.send(some, 1, 0.0)
    assert isinstance(message, Drop)
    assert dict(message.experts) == {3: (1,), 4: (5,)}
    assert dict(other.experts) == {3: (2,)}
