"""Requests wait in a queue for each peer, and peers are served in turns."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.workers.serving import LIMITS, request
from workers.waiting import MAX_WAITING, MAX_WAITING_MESSAGES_BYTES, Waiting


def test_a_flood_of_one_peer_leaves_room_for_others_and_does_not_delay_them() -> None:
    waiting = Waiting(LIMITS)
    taken = [waiting.add(b"flood", request(number)) for number in range(3 * MAX_WAITING)]
    assert taken == [True] * MAX_WAITING + [False] * 2 * MAX_WAITING
    assert waiting.add(b"head", request(100))
    order = [waiting.next()[1].request_id for _ in range(3)]
    assert order == [0, 100, 1]
    assert len(waiting) == MAX_WAITING - 2


def test_large_requests_are_bounded_by_their_bytes() -> None:
    limits = replace(LIMITS, max_rows=512)
    waiting = Waiting(limits)
    most = MAX_WAITING_MESSAGES_BYTES
    assert [waiting.add(b"p", request(number, 512)) for number in range(most + 1)] == [True] * most + [False]
    assert most < MAX_WAITING


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
def test_each_peers_requests_leave_in_their_order_and_none_is_lost(steps: list[tuple[int, bool]]) -> None:
    waiting = Waiting(LIMITS)
    added: dict[bytes, list[int]] = {}
    left: dict[bytes, list[int]] = {}
    for number, (peer, take) in enumerate(steps):
        if take and waiting:
            name, asked = waiting.next()
            left.setdefault(name, []).append(asked.request_id)
        elif waiting.add(b"%d" % peer, request(number)):
            added.setdefault(b"%d" % peer, []).append(number)
    while waiting:
        name, asked = waiting.next()
        left.setdefault(name, []).append(asked.request_id)
    assert left == added
    assert not waiting.clear()
