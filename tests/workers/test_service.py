"""The service answers its head and survives everybody else."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from placement.errors import KeysRequired, WorkerStartError
from tests.forks.forks import Forks
from tests.workers.serving import (
    DEADLINE_S,
    HELD,
    HIDDEN_SIZE,
    LIMITS,
    TOP_K,
    GatedStore,
    SmallStore,
    answer,
    connected,
    endpoint,
    expected,
    request,
    serving,
    wait_until,
)
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.keys import HeadKeys, KeyPair, WorkerKeys
from transport.loops import EXIT_CODE
from transport.messages import ErrorCode, ErrorReply, ForwardReply, HelloReply, Pong, WorkerState
from transport.wire import decode_reply, encode
from workers.fixed_point import PartialSum
from workers.gpu.errors import DeviceFull, DeviceLost
from workers.service import MAX_RECEIVED, ExpertService
from workers.tiers import StillLoading
from workers.waiting import MAX_WAITING

WIRES = ("tcp", "ipc", "inproc")


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(linger=0)


def stranger(context: zmq.Context[Any], service: ExpertService) -> zmq.Socket[bytes]:
    """A peer that sends what it likes."""
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
    dealer.connect(service.endpoint)
    return dealer


def assert_serves(service: ExpertService, store: SmallStore, context: zmq.Context[Any]) -> None:
    with connected(service, context) as client:
        asked = request(1)
        client.send(asked)
        assert_right(answer(client), asked, store)


def assert_right(reply: object, asked: Any, store: SmallStore) -> None:
    assert isinstance(reply, ForwardReply), reply
    right = expected(store, asked)
    assert reply.request_id == asked.request_id
    np.testing.assert_array_equal(reply.values, right.values)
    np.testing.assert_array_equal(reply.saturated, right.saturated)
    assert reply.compute_s > 0


def depth_of(reply: object) -> tuple[int, int]:
    """A Pong's request id and queue depth."""
    assert isinstance(reply, Pong), reply
    return reply.request_id, reply.queue_depth


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("num_rows", [1, 5, 64])
@pytest.mark.parametrize("wire", WIRES)
def test_an_answer_is_what_the_store_computes(
    wire: str, num_rows: int, bfloat16: bool, tmp_path: Path, context: zmq.Context[Any]
) -> None:
    store = SmallStore()
    with (
        serving(store, endpoint(wire, tmp_path), context) as service,
        connected(service, context) as client,
    ):
        asked = request(2**63, num_rows, bfloat16=bfloat16)
        client.send_forward(asked.request_id, asked.epoch, asked.layer, asked.rows)
        assert_right(answer(client), asked, store)
        assert client.receive() is None


@pytest.mark.parametrize("wire", WIRES)
def test_many_askers_at_once_each_get_their_own_answers(
    wire: str, tmp_path: Path, context: zmq.Context[Any]
) -> None:
    store = SmallStore()
    failures: list[BaseException] = []

    def ask(service: ExpertService, asker: int) -> None:
        try:
            with connected(service, context) as client:
                for number in range(60):
                    asked = [request(3 * number + i, 1 + i, seed=asker) for i in range(3)]
                    for one in asked:
                        client.send(one)
                        client.ping(10_000 + one.request_id)
                    replies = [answer(client) for _ in range(6)]
                    forwards = [reply for reply in replies if not isinstance(reply, Pong)]
                    for one, reply in zip(asked, forwards, strict=True):
                        assert_right(reply, one, store)
        except BaseException as error:
            failures.append(error)

    with serving(store, endpoint(wire, tmp_path), context) as service:
        askers = [threading.Thread(target=ask, args=(service, asker)) for asker in range(4)]
        for thread in askers:
            thread.start()
        for thread in askers:
            thread.join()
        assert service.health().served == 4 * 60 * 3
    assert failures == []


def test_a_greeting_is_answered_with_what_the_worker_serves(context: zmq.Context[Any]) -> None:
    with serving(SmallStore()) as service, connected(service, context) as client:
        reply = client.hello(DEADLINE_S, dtype="float32")
        assert reply == HelloReply(
            0,
            "w",
            reply.instance,
            WorkerState.READY,
            LIMITS.fingerprint,
            "",
            "float32",
            SmallStore.num_experts,
            "",
        )
        assert client.hello(DEADLINE_S).instance == reply.instance


@pytest.mark.parametrize(
    ("name", "limits", "dtype", "message"),
    [
        ("other", LIMITS, None, "serves name w, expected other"),
        (
            "w",
            dataclasses.replace(LIMITS, fingerprint="x"),
            None,
            "serves fingerprint fingerprint, expected x",
        ),
        ("w", LIMITS, "bfloat16", "serves dtype float32, expected bfloat16"),
    ],
)
def test_a_worker_of_another_model_is_found_out_by_greeting_it(
    name: str, limits: Any, dtype: str | None, message: str, context: zmq.Context[Any]
) -> None:
    with serving(SmallStore()) as service:
        client = WorkerClient(context, service.endpoint, limits, name=name)
        with pytest.raises(WorkerStartError, match=message):
            client.hello(DEADLINE_S, dtype=dtype)
        client.close()


def test_a_worker_that_does_not_run_is_named(context: zmq.Context[Any]) -> None:
    client = WorkerClient(context, "tcp://127.0.0.1:1", LIMITS, name="gone")
    with pytest.raises(WorkerStartError, match=r"worker gone at tcp://127\.0\.0\.1:1: no answer in 0\.05 s"):
        client.hello(0.05)


def test_a_ping_is_answered_while_the_experts_compute(context: zmq.Context[Any]) -> None:
    store = GatedStore()
    with serving(store) as service, connected(service, context) as client:
        client.send(request(1))
        assert store.begun.acquire(timeout=DEADLINE_S)
        for number in range(3):
            client.ping(100 + number)
            assert depth_of(answer(client)) == (100 + number, 1)
        assert client.hello(DEADLINE_S).name == "w"
        store.gate.set()
        assert_right(answer(client), request(1), store)
        client.ping(200)
        assert depth_of(answer(client)) == (200, 0)


def test_a_ping_right_behind_a_request_does_not_wait_for_it(context: zmq.Context[Any]) -> None:
    store = GatedStore()
    with serving(store) as service, connected(service, context) as client:
        client.send(request(1))
        client.ping(2)
        assert isinstance(answer(client), Pong)
        store.gate.set()
        assert_right(answer(client), request(1), store)


def test_a_full_queue_says_busy_and_loses_nothing(context: zmq.Context[Any]) -> None:
    store = GatedStore()
    with serving(store) as service, connected(service, context) as client:
        client.send(request(0))
        assert store.begun.acquire(timeout=DEADLINE_S)
        for number in range(1, MAX_WAITING + 3):
            client.send(request(number))
        refused = [answer(client) for _ in range(2)]
        assert [(reply.request_id, reply.code) for reply in refused if isinstance(reply, ErrorReply)] == [
            (MAX_WAITING + 1, ErrorCode.BUSY),
            (MAX_WAITING + 2, ErrorCode.BUSY),
        ]
        client.ping(99)
        assert depth_of(answer(client)) == (99, MAX_WAITING + 1)
        store.gate.set()
        for number in range(MAX_WAITING + 1):
            assert_right(answer(client), request(number), store)


def test_a_flood_of_pings_does_not_keep_a_request_waiting(context: zmq.Context[Any]) -> None:
    store = SmallStore()
    with serving(store) as service, connected(service, context) as client:
        sent = 3 * MAX_RECEIVED
        for number in range(sent):
            # The socket takes 64 at a time, so the answers are taken meanwhile.
            client.ping(number)
            assert answer(client).request_id == number
        client.send(request(1))
        assert_right(answer(client), request(1), store)


FRAMES_OF_STRANGERS = [
    [b""],
    [b"", b""],
    [b"hello"],
    [b"\xff" * 100],
    [b"\x80"],
    [msgpack.packb({"version": 1})],
    [msgpack.packb([2, 5])],
    [msgpack.packb([2, 5, 3, 1, 1]), b"a tensor that a ping has not"],
    [msgpack.packb([2, 3, 9, 1, 4, 2, 1, 3, 48, "f32", b"x" * 28]), b"short"],
    [msgpack.packb([2, 3, 9, 1, 4, 2, 1, 3.0, 48, "f32", b"x" * 28]), bytes(4 * 48)],
    [b"a", b"b", b"c", b"d", b"e", b"f"],
    [msgpack.packb([2, 2, 3, "w", 4, "ready", "fingerprint", "", "float32", 6, ""])],
    [msgpack.packb([2, 8, 3, 1, b"", 0])],
    [msgpack.packb([2, 11, 3])],
    [b"\x91" * 3000],
]


@pytest.mark.parametrize("wire", WIRES)
def test_a_strangers_frames_get_a_typed_error_and_harm_nobody(
    wire: str, tmp_path: Path, context: zmq.Context[Any]
) -> None:
    store = SmallStore()
    with serving(store, endpoint(wire, tmp_path), context) as service:
        dealer = stranger(context, service)
        for frames in FRAMES_OF_STRANGERS:
            dealer.send_multipart(frames)
            reply = decode_reply(dealer.recv_multipart(), LIMITS)
            assert isinstance(reply, ErrorReply), frames
            assert "Traceback" not in reply.message
            assert ".py" not in reply.message
        assert service.health().refused == len(FRAMES_OF_STRANGERS)
        assert_serves(service, store, context)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"layer": 4}, ErrorCode.UNKNOWN_LAYER),
        ({"hidden": np.zeros((1, HIDDEN_SIZE + 1), np.float32)}, ErrorCode.BAD_SHAPE),
        ({"expert_ids": np.zeros((1, TOP_K + 1), np.int32)}, ErrorCode.BAD_SHAPE),
        ({"expert_ids": np.full((1, TOP_K), 99, np.int32)}, ErrorCode.BAD_SHAPE),
        ({"expert_ids": np.full((1, TOP_K), HELD, np.int32)}, ErrorCode.EXPERT_NOT_HELD),
        ({"scale_exponents": np.full(1, 500, np.int32)}, ErrorCode.BAD_SHAPE),
    ],
)
def test_a_request_outside_the_plan_is_refused_by_its_own_name(
    changes: dict[str, Any], code: ErrorCode, context: zmq.Context[Any]
) -> None:
    store = SmallStore()
    with serving(store) as service:
        dealer = stranger(context, service)
        asked = request(31)
        rows = {name: value for name, value in changes.items() if name in asked.rows._fields}
        rest = {name: value for name, value in changes.items() if name not in rows}
        frames = encode(asked._replace(rows=asked.rows._replace(**rows), **rest))
        dealer.send_multipart([bytes(frame) for frame in frames])
        reply = decode_reply(dealer.recv_multipart(), LIMITS)
        assert isinstance(reply, ErrorReply)
        assert (reply.request_id, reply.code) == (31, code)
        assert_serves(service, store, context)


def changed_header(place: int, value: bytes, request_id: int = 8) -> list[bytes]:
    """A request of one row whose header (`transport.forward`) says something else from byte `place` on."""
    header, tensor = (bytes(frame) for frame in encode(request(request_id)))
    return [header[:place] + value + header[place + len(value) :], tensor]


@pytest.mark.parametrize(
    ("place", "value", "code", "answered_id"),
    [
        (1, b"\2", ErrorCode.BAD_VERSION, 0),
        (3, b"\x7f", ErrorCode.BAD_DTYPE, 8),
        (4, (LIMITS.max_rows + 1).to_bytes(4, "little"), ErrorCode.TOO_LARGE, 8),
    ],
)
def test_another_version_form_or_size_is_refused_by_name(
    place: int, value: bytes, code: ErrorCode, answered_id: int, context: zmq.Context[Any]
) -> None:
    with serving(SmallStore()) as service:
        dealer = stranger(context, service)
        dealer.send_multipart(changed_header(place, value))
        reply = decode_reply(dealer.recv_multipart(), LIMITS)
        assert isinstance(reply, ErrorReply)
        assert (reply.request_id, reply.code) == (answered_id, code)


def test_a_frame_larger_than_any_message_drops_its_sender_before_it_arrives(
    context: zmq.Context[Any],
) -> None:
    """A ZMTP 3.0 peer by hand: it announces a frame of 2**60 bytes, and is hung up on."""
    store = SmallStore()
    with serving(store) as service:
        host, port = service.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as peer:
            peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
            ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
            peer.sendall(b"\x04" + bytes([len(ready)]) + ready)
            received = b""
            while b"READY" not in received:
                received += peer.recv(4096)
            peer.sendall(b"\x02" + struct.pack(">Q", 2**60))
            with contextlib.suppress(ConnectionResetError):
                while peer.recv(4096):
                    pass
        assert_serves(service, store, context)


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 4096, b"\xff" * 4096, b""])
def test_a_peer_that_does_not_speak_zeromq_harms_nobody(noise: bytes, context: zmq.Context[Any]) -> None:
    store = SmallStore()
    with serving(store) as service:
        host, port = service.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as peer:
            peer.sendall(noise)
            assert_serves(service, store, context)


def test_an_asker_that_leaves_before_its_answer_harms_nobody(context: zmq.Context[Any]) -> None:
    store = GatedStore()
    with serving(store) as service:
        with connected(service, context) as client:
            client.send(request(1))
            assert store.begun.acquire(timeout=DEADLINE_S)
        store.gate.set()
        assert_serves(service, store, context)


class BrokenStore(SmallStore):
    def forward(self, *arguments: Any) -> PartialSum:
        raise RuntimeError("the device fell off the bus")


def test_a_failure_is_told_to_its_owner_and_not_to_the_asker(context: zmq.Context[Any]) -> None:
    with serving(BrokenStore()) as service, connected(service, context) as client:
        client.send(request(5))
        reply = answer(client)
        assert isinstance(reply, ErrorReply)
        assert (reply.request_id, reply.code) == (5, ErrorCode.INTERNAL)
        assert "bus" not in reply.message
        assert "the device fell off the bus" in service.health().last_failure
        client.ping(6)
        assert isinstance(answer(client), Pong)


def test_a_saturated_row_is_flagged_on_the_way_back(context: zmq.Context[Any]) -> None:
    store = SmallStore()
    asked = request(1, 2)
    asked = asked._replace(
        rows=asked.rows._replace(
            expert_ids=np.zeros((2, TOP_K), np.int32), scale_exponents=np.array([-20, -120], np.int32)
        )
    )
    with serving(store) as service, connected(service, context) as client:
        client.send(asked)
        reply = answer(client)
        assert isinstance(reply, ForwardReply)
        assert reply.saturated.tolist() == [False, True]


def test_keys_let_the_head_in_and_nobody_else(context: zmq.Context[Any]) -> None:
    head, worker, other = KeyPair.make(), KeyPair.make(), KeyPair.make()
    store = SmallStore()
    with ExpertService(
        "w", store, LIMITS, dtype="float32", keys=WorkerKeys(worker, frozenset([head.public]))
    ) as service:

        def greet(keys: HeadKeys | None, timeout_s: float) -> WorkerClient:
            client = WorkerClient(context, service.endpoint, LIMITS, name="w", keys=keys)
            client.hello(timeout_s)
            return client

        for refused in (HeadKeys(other, worker.public), HeadKeys(head, other.public), None):
            with pytest.raises(WorkerStartError, match="other keys"):
                greet(refused, 0.3)
        client = greet(HeadKeys(head, worker.public), DEADLINE_S)
        client.send(request(1))
        assert_right(answer(client), request(1), store)
        client.close()


@pytest.mark.parametrize("where", ["tcp://*:*", "tcp://0.0.0.0:*"])
def test_an_address_others_can_reach_is_not_bound_without_keys(where: str) -> None:
    service = ExpertService("w", SmallStore(), LIMITS, where, dtype="float32")
    with pytest.raises(KeysRequired):
        service.start()
    keys = WorkerKeys(KeyPair.make(), frozenset([KeyPair.make().public]))
    with ExpertService("w", SmallStore(), LIMITS, where, dtype="float32", keys=keys) as service:
        assert service.health().running


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with serving(SmallStore()) as first:
        second = ExpertService("second", SmallStore(), LIMITS, first.endpoint, dtype="float32")
        with pytest.raises(WorkerStartError, match=f"worker second: cannot bind {first.endpoint}: .*in use"):
            second.start()
        assert first.health().running


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("tcp://127.0.0.1:notaport", "not an endpoint"),
        ("ipc:///no/such/directory/x.sock", "directory"),
        ("ipc://" + "/x" * 100, "too long"),
    ],
)
def test_an_endpoint_that_cannot_be_bound_says_why(where: str, reason: str) -> None:
    with pytest.raises(WorkerStartError, match=reason):
        ExpertService("w", SmallStore(), LIMITS, where, dtype="float32").start()


def test_stopping_frees_the_port_and_may_be_repeated(context: zmq.Context[Any]) -> None:
    store = SmallStore()
    with serving(store) as service:
        where = service.endpoint
    service.stop()
    assert not service.health().running
    with serving(store, where) as again:
        assert again.endpoint == where
        assert_serves(again, store, context)


def test_stopping_does_not_wait_for_what_is_queued(context: zmq.Context[Any]) -> None:
    store = GatedStore()
    with serving(store) as service, connected(service, context) as client:
        for number in range(5):
            client.send(request(number))
        wait_until(lambda: service.health().queue_depth == 5)
        stopping = threading.Thread(target=service.stop)
        stopping.start()
        wait_until(lambda: service.health().queue_depth == 1)
        store.gate.set()
        stopping.join(DEADLINE_S)
        assert not stopping.is_alive()
        assert service.health().served <= 1


def test_a_store_without_experts_serves_zeros(context: zmq.Context[Any]) -> None:
    asked = request(1, 2)
    asked = asked._replace(rows=asked.rows._replace(expert_ids=np.full((2, TOP_K), -1, np.int32)))
    with serving(SmallStore()) as service, connected(service, context) as client:
        client.send(asked)
        reply = answer(client)
        assert isinstance(reply, ForwardReply)
        assert not reply.values.any()


def test_a_flood_by_one_peer_never_makes_another_busy(context: zmq.Context[Any]) -> None:
    store = GatedStore()
    with (
        serving(store) as service,
        connected(service, context) as flood,
        connected(service, context) as client,
    ):
        flood.send(request(0))
        assert store.begun.acquire(timeout=DEADLINE_S)
        for number in range(1, 3 * MAX_WAITING):
            flood.send(request(number))
        wait_until(lambda: service.health().refused > 0)
        client.send(request(1000))
        wait_until(lambda: service.health().queue_depth == MAX_WAITING + 2)
        store.gate.set()
        assert_right(answer(client), request(1000), store)


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (DeviceFull("cuda:0: 9 MB asked for, 1 MB free", 9_000_000), ErrorCode.NO_MEMORY),
        (DeviceLost("cuda:0: the card stopped working", "cuda:0"), ErrorCode.INTERNAL),
    ],
)
def test_what_a_card_cannot_do_is_told_in_its_words(
    failure: Exception, code: ErrorCode, context: zmq.Context[Any]
) -> None:
    class OnCard(SmallStore):
        def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
            raise failure

    with serving(OnCard()) as service, connected(service, context) as client:
        client.send(request(5))
        assert answer(client) == ErrorReply(5, code, str(failure))
        assert str(failure) in service.health().last_failure


@pytest.mark.parametrize(
    "failure", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory: 9 bytes")]
)
def test_a_request_without_memory_for_it_is_refused_by_name(
    failure: Exception, context: zmq.Context[Any]
) -> None:
    class Full(SmallStore):
        def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
            raise failure

    with serving(Full()) as service, connected(service, context) as client:
        client.send(request(5))
        reply = answer(client)
        assert reply == ErrorReply(5, ErrorCode.NO_MEMORY, "worker w has no memory for 1 rows")


def test_experts_that_are_still_loading_are_told_apart(context: zmq.Context[Any]) -> None:
    class Loading(SmallStore):
        def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
            raise StillLoading("2 of 9 GB")

    with serving(Loading()) as service, connected(service, context) as client:
        client.send(request(5))
        assert answer(client) == ErrorReply(5, ErrorCode.LOADING, "2 of 9 GB")


def test_a_sum_that_is_none_is_an_answer_and_not_the_end(context: zmq.Context[Any]) -> None:
    class Wrong(SmallStore):
        def forward(self, layer: int, rows: ExpertRows) -> Any:
            return PartialSum(None, None)  # type: ignore[arg-type]

    with serving(Wrong()) as service, connected(service, context) as client:
        client.send(request(5))
        reply = answer(client)
        assert isinstance(reply, ErrorReply)
        assert (reply.request_id, reply.code) == (5, ErrorCode.INTERNAL)
        client.ping(6)
        assert depth_of(answer(client)) == (6, 0)


BROKEN_LOOP = """
import logging, threading
from tests.workers.serving import LIMITS, SmallStore, connected, request
from transport.server import Server
from workers.gpu.errors import DeviceFull, DeviceLost
from workers.service import ExpertService

logging.basicConfig(format="%(message)s")
with ExpertService("w", SmallStore(), LIMITS, dtype="float32") as service, connected(service) as client:
    Server.pending = lambda self: 1 / 0
    client.send(request(1))
    threading.Event().wait(20)
print("half a worker lived on")
"""


def test_a_loop_that_fails_takes_the_process_along_in_one_line(forks: Forks) -> None:
    done = subprocess.run(
        forks.command(["-c", BROKEN_LOOP]), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == EXIT_CODE
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("worker w: service: ends this process: ZeroDivisionError: ")
