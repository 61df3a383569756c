"""What libzmq lets pass, the guard does not: a message without an end, and connections without number."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import zmq

from tests.workers.raw_peer import RawPeer
from tests.workers.serving import DEADLINE_S, LIMITS, SmallStore, answer, endpoint, expected, request
from transport.client import WorkerClient
from transport.guard import MAX_CONNECTIONS, MAX_OF_ADDRESS
from transport.keys import HeadKeys, KeyPair, WorkerKeys
from transport.messages import ForwardReply
from workers.service import ExpertService

OWN, HEAD = KeyPair.make(), KeyPair.make()
AT_ONCE_BYTES = 256 << 10


def memory_bytes() -> int:
    resident, shared = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3])
    return (resident - shared) * 4096


STORE = SmallStore()


@contextmanager
def worker(wire: str, folder: Path, *, keys: bool) -> Iterator[tuple[ExpertService, HeadKeys | None]]:
    allowed = WorkerKeys(OWN, frozenset([HEAD.public])) if keys else None
    where = endpoint(wire, folder)
    with ExpertService("w", SmallStore(), LIMITS, where, dtype="float32", keys=allowed) as service:
        yield service, HeadKeys(HEAD, OWN.public) if keys else None


@contextmanager
def head(service: ExpertService, keys: HeadKeys | None) -> Iterator[WorkerClient]:
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        client = WorkerClient(context, service.endpoint, LIMITS, name="w", keys=keys)
        stack.callback(client.close)
        client.hello(DEADLINE_S)
        yield client


def assert_served(client: WorkerClient, number: int) -> None:
    asked = request(number)
    client.send(asked)
    reply = answer(client)
    assert isinstance(reply, ForwardReply)
    assert reply.request_id == number
    assert (reply.values == expected(STORE, asked).values).all()


@pytest.mark.parametrize(("wire", "keys"), [("tcp", False), ("tcp", True), ("ipc", False)])
@pytest.mark.parametrize("part_bytes", [0, 8000])
def test_a_message_without_an_end_is_cut_off_while_others_are_served(
    wire: str, keys: bool, part_bytes: int, tmp_path: Path
) -> None:
    with worker(wire, tmp_path, keys=keys) as (service, head_keys), head(service, head_keys) as client:
        before = memory_bytes()
        peer = RawPeer(service.endpoint, head_keys, DEADLINE_S)
        cut = threading.Event()

        def flood() -> None:
            part = bytes(part_bytes)
            num_parts = 16 if keys else AT_ONCE_BYTES // (part_bytes + 8)
            once = b"".join(peer.frame(part, more=True) for _ in range(num_parts))
            try:
                while True:
                    peer.socket.sendall(once)
                    # Threads share this process, and the guard's needs its turn as in a worker's own.
                    time.sleep(0.001)
                    if keys:
                        once = b"".join(peer.frame(part, more=True) for _ in range(num_parts))
            except (ConnectionError, TimeoutError):
                cut.set()

        attacker = threading.Thread(target=flood)
        attacker.start()
        number, until = 1, time.monotonic() + DEADLINE_S
        most = before
        while not cut.is_set() and time.monotonic() < until:
            assert_served(client, number)
            most = max(most, memory_bytes())
            number += 1
        assert cut.is_set()
        attacker.join()
        peer.close()
        assert_served(client, number + 1)
        assert most - before < 512 << 20
        # The attacker may come again, and an honest message gets through.
        again = RawPeer(service.endpoint, head_keys, DEADLINE_S)
        again.send(b"nonsense", more=False)
        assert again.socket.recv(16)
        again.close()


def test_connections_are_bounded_and_silent_ones_make_room(tmp_path: Path) -> None:
    with worker("tcp", tmp_path, keys=False) as (service, _), head(service, None) as client:
        assert_served(client, 1)
        crowd = [RawPeer(service.endpoint) for _ in range(2 * MAX_CONNECTIONS)]
        assert_served(client, 2)
        with head(service, None) as late:
            assert_served(late, 3)
        closed = 0
        for peer in crowd[: MAX_CONNECTIONS - 2]:
            closed += _is_closed(peer)
        assert closed >= MAX_CONNECTIONS - 2
        assert_served(client, 4)
        for peer in crowd:
            peer.close()


def own_address() -> str:
    """One that is not loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return ""


def test_one_address_has_a_bounded_share_and_strangers_do_not_keep_its_head_out() -> None:
    address = own_address()
    if not address or address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    keys, head_keys = WorkerKeys(OWN, frozenset([HEAD.public])), HeadKeys(HEAD, OWN.public)
    where = f"tcp://{address}:*"
    with (
        ExpertService("w", SmallStore(), LIMITS, where, dtype="float32", keys=keys) as service,
        head(service, head_keys) as client,
    ):
        assert_served(client, 1)
        # They are allowed and silent: libzmq alone would keep them until it had missed heartbeats for 10 s.
        started = time.monotonic()
        crowd = [RawPeer(service.endpoint, head_keys, DEADLINE_S) for _ in range(3 * MAX_OF_ADDRESS)]
        for peer in crowd[: 2 * MAX_OF_ADDRESS]:
            with contextlib.suppress(ConnectionError):
                while peer.socket.recv(4096):
                    pass
        assert time.monotonic() < started + 9
        assert_served(client, 2)
        with head(service, head_keys) as late:
            assert_served(late, 3)
        for peer in crowd:
            peer.close()


def _is_closed(peer: RawPeer) -> bool:
    try:
        return peer.socket.recv(1) == b""
    except ConnectionError:
        return True
