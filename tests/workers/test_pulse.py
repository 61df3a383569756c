"""A worker's pulse beats while its experts compute, takes orders, and shows when the connection is gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from placement.errors import PotluckError
from tests.workers.serving import (
    DEADLINE_S,
    LIMITS,
    SESSION,
    GatedStore,
    answer,
    connected,
    endpoint,
    request,
    wait_until,
)
from transport.keys import HeadKeys, KeyPair, WorkerKeys
from transport.messages import (
    Drop,
    ErrorCode,
    ErrorReply,
    Held,
    HelloReply,
    Hold,
    Pong,
    Reply,
    Shutdown,
    WorkerState,
)
from transport.pulse_client import Link, PulseClient
from workers.pulse import FixedExperts, PulseServer
from workers.service import ExpertService
from workers.sessions import MAX_SESSIONS, Sessions


class Orders(FixedExperts):
    """Takes orders for layer 2 only, and counts them."""

    def __init__(self) -> None:
        super().__init__("w", LIMITS, "float32", 3)
        self.ended = threading.Event()

    def obey(self, order: Hold | Drop) -> Held:
        if isinstance(order, Drop):
            raise RuntimeError("a bug")
        if 2 not in order.experts:
            raise PotluckError("no such layer here")
        self.changes += 1
        return Held(order.request_id, order.order, False, 5, "loading")

    def shut_down(self) -> None:
        self.ended.set()


@contextmanager
def pulse(
    handler: FixedExperts,
    sessions: Sessions,
    where: str = "tcp://127.0.0.1:*",
    keys: WorkerKeys | None = None,
) -> Iterator[PulseServer]:
    with PulseServer("w", handler, sessions, LIMITS, where, keys=keys) as server:
        yield server


@contextmanager
def watching(server: PulseServer, keys: HeadKeys | None = None) -> Iterator[PulseClient]:
    with ExitStack() as stack:
        context: zmq.Context[Any] = stack.enter_context(zmq.Context())
        client = PulseClient(context, server.endpoint, LIMITS, name="w", session=SESSION, keys=keys)
        stack.callback(client.close)
        yield client


def asked(client: PulseClient, *, until: type[Reply], ping: bool = True) -> Reply:
    """The answer to one request, made again while there is no connection."""
    if ping:
        wait_until(lambda: client.ping(7, 0))
    assert client.socket.poll(int(DEADLINE_S * 1000))
    reply = client.receive()
    assert isinstance(reply, until), reply
    return reply


@pytest.mark.parametrize("wire", ["tcp", "ipc"])
def test_it_says_what_came_from_a_head_and_what_is_computed_for_it(wire: str, tmp_path: Path) -> None:
    store, sessions = GatedStore(), Sessions()
    handler = FixedExperts("w", LIMITS, "float32", 3)
    with (
        ExpertService("w", store, LIMITS, dtype="float32", sessions=sessions, handler=handler) as service,
        pulse(handler, sessions, endpoint(wire, tmp_path)) as server,
        watching(server) as client,
        connected(service) as data,
    ):
        pong = asked(client, until=Pong)
        assert pong == Pong(7, handler.instance, WorkerState.READY, 0, 0, 0, 0, 0.0, 0)
        for number in (21, 20):
            data.send(request(number))
        assert store.begun.acquire(timeout=DEADLINE_S)
        wait_until(lambda: sessions.seen(SESSION).open_ids == 2)
        pong = asked(client, until=Pong)
        assert isinstance(pong, Pong)
        assert (pong.queue_depth, pong.received_id, pong.open_ids, pong.computing_id) == (2, 21, 2, 21)
        assert pong.computing_s > 0
        assert sessions.seen(SESSION + 1).computing_id == 0
        assert sessions.seen(SESSION + 1).queue_depth == 2
        store.gate.set()
        for _ in range(2):
            answer(data)
        wait_until(lambda: sessions.seen(SESSION).open_ids == 0)
        pong = asked(client, until=Pong)
        assert isinstance(pong, Pong)
        assert (pong.queue_depth, pong.received_id, pong.open_ids, pong.computing_id) == (0, 21, 0, 0)


def test_an_epoch_that_a_head_has_left_behind_is_refused() -> None:
    store, sessions = GatedStore(), Sessions()
    store.gate.set()
    handler = FixedExperts("w", LIMITS, "float32", 3)
    with (
        ExpertService("w", store, LIMITS, dtype="float32", sessions=sessions, handler=handler) as service,
        pulse(handler, sessions) as server,
        watching(server) as client,
        connected(service) as data,
    ):
        wait_until(lambda: client.ping(1, 5))
        asked(client, until=Pong, ping=False)
        codes = []
        for epoch in (4, 5, 9):
            data.send(request(epoch)._replace(epoch=epoch))
            reply = answer(data)
            codes.append(reply.code if isinstance(reply, ErrorReply) else None)
        assert codes == [ErrorCode.WRONG_EPOCH, None, None]
        data.send(request(1)._replace(epoch=4, session=SESSION + 1))
        assert not isinstance(answer(data), ErrorReply)
        assert sessions.seen(SESSION).open_ids == 0


def test_orders_are_handed_on_and_a_refusal_or_a_bug_is_an_answer() -> None:
    handler = Orders()
    with pulse(handler, Sessions()) as server, watching(server) as client:
        asked(client, until=Pong)
        client.send(Hold(1, 11, {2: (0, 4)}, 1000))
        assert asked(client, until=Held, ping=False) == Held(1, 11, False, 5, "loading")
        client.send(Hold(2, 12, {3: (1,)}, 0))
        refused = asked(client, until=ErrorReply, ping=False)
        assert refused == ErrorReply(2, ErrorCode.REFUSED, "no such layer here")
        client.send(Drop(3, 13, {2: (1,)}))
        broken = asked(client, until=ErrorReply, ping=False)
        assert isinstance(broken, ErrorReply)
        assert (broken.request_id, broken.code) == (3, ErrorCode.INTERNAL)
        assert "bug" not in broken.message
        client.send(request(4))
        assert asked(client, until=ErrorReply, ping=False).request_id == 4
        assert isinstance(pong := asked(client, until=Pong), Pong)
        assert pong.changes == 1
        client.hello(5)
        greeted = asked(client, until=HelloReply, ping=False)
        assert isinstance(greeted, HelloReply)
        assert greeted.instance == pong.instance
        client.send(Shutdown(6))
        assert asked(client, until=Held, ping=False) == Held(6, 0, True, 0, "")
        assert handler.ended.wait(DEADLINE_S)


def test_a_connection_is_up_and_then_down_and_up_again_under_another_instance() -> None:
    links: list[Link] = []

    def seen(client: PulseClient, link: Link) -> bool:
        links.extend(client.links())
        return link in links

    with pulse(FixedExperts("w", LIMITS, "float32", 3), Sessions()) as server, watching(server) as client:
        wait_until(lambda: seen(client, Link.UP))
        first = asked(client, until=Pong)
        where = server.endpoint
        server.stop()
        wait_until(lambda: seen(client, Link.DOWN))
        assert links == [Link.UP, Link.DOWN]
        # libzmq takes the connection away a little after it tells of it.
        wait_until(lambda: not client.ping(8, 0))
        links.clear()
        with pulse(FixedExperts("w", LIMITS, "float32", 3), Sessions(), where):
            wait_until(lambda: seen(client, Link.UP))
            second = asked(client, until=Pong)
        assert isinstance(first, Pong)
        assert isinstance(second, Pong)
        assert first.instance != second.instance


def test_a_key_that_is_not_allowed_is_refused_and_every_allowed_one_is_served() -> None:
    own, first, second, other = (KeyPair.make() for _ in range(4))
    keys = WorkerKeys(own, frozenset([first.public, second.public]))
    with pulse(FixedExperts("w", LIMITS, "float32", 3), Sessions(), keys=keys) as server:
        for allowed in (first, second):
            with watching(server, HeadKeys(allowed, own.public)) as client:
                assert asked(client, until=Pong)
        with watching(server, HeadKeys(other, own.public)) as client:
            wait_until(lambda: Link.REFUSED in client.links())
            assert not client.ping(1, 0)


def test_a_worker_remembers_a_bounded_number_of_heads_and_keeps_those_it_owes() -> None:
    sessions = Sessions()
    sessions.received(1, 5)
    for session in range(2, 3 * MAX_SESSIONS):
        sessions.pinged(session, 1)
    assert sessions.seen(1).open_ids == 1
    assert sessions.received(2, 1) == 0
    assert sessions.received(3 * MAX_SESSIONS - 1, 1) == 1
