"""Whole messages in and out of a socket, as `transport.sockets` takes and gives them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from transport.sockets import (
    COPY_THRESHOLD_BYTES,
    Context,
    Socket,
    has_message,
    receive_message,
    receive_named,
    send_message,
    wait_any,
)

NOBLOCK = int(zmq.NOBLOCK)


@pytest.fixture
def ends() -> Iterator[tuple[Socket, Socket]]:
    """A ROUTER and a DEALER that is connected to it over TCP."""
    context: Context = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for socket in (router, dealer):
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, 20_000)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
    yield router, dealer
    context.destroy(0)


@pytest.mark.parametrize("size", [0, 1, 5, 8_191, 16_384, COPY_THRESHOLD_BYTES, 3 * COPY_THRESHOLD_BYTES + 1])
def test_what_is_sent_arrives_both_ways_aligned(ends: tuple[Socket, Socket], size: int) -> None:
    router, dealer = ends
    tensor = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    send_message(dealer, [b"head", tensor])
    assert router.poll(20_000)
    message = receive_named(router)
    assert message is not None
    peer, *frames = message
    assert type(peer) is bytes
    send_message(router, frames, peer)
    back = receive_message(dealer)
    assert back is not None
    for header, body in (frames, back):
        assert (bytes(header), bytes(body), len(body)) == (b"head", tensor.tobytes(), size)
        assert size == 0 or np.frombuffer(memoryview(body), np.uint8).ctypes.data % 8 == 0


def test_of_too_many_frames_a_few_are_kept_and_the_next_message_is_whole(ends: tuple[Socket, Socket]) -> None:
    router, dealer = ends
    dealer.send_multipart([bytes([number]) for number in range(200)])
    dealer.send(b"next")
    assert router.poll(20_000)
    first = receive_named(router)
    assert first is not None
    assert [bytes(frame) for frame in first[1:]] == [b"\0", b"\1", b"\2"]
    assert router.poll(20_000)
    second = receive_named(router)
    assert second is not None
    assert [bytes(frame) for frame in second] == [first[0], b"next"]


def test_nothing_there_is_none(ends: tuple[Socket, Socket]) -> None:
    router, dealer = ends
    assert not has_message(router)
    assert receive_named(router) is None
    assert receive_message(dealer, NOBLOCK) is None
    dealer.setsockopt(zmq.RCVTIMEO, 1)
    assert receive_message(dealer) is None


def test_a_frame_outlives_its_socket(ends: tuple[Socket, Socket]) -> None:
    router, dealer = ends
    send_message(dealer, [b"head", b"body" * 5_000])
    assert router.poll(20_000)
    message = receive_named(router)
    assert message is not None
    view = memoryview(message[2])
    router.close(0)
    del message
    assert bytes(view) == b"body" * 5_000


def test_errors_are_those_of_pyzmq(ends: tuple[Socket, Socket]) -> None:
    router, dealer = ends
    with pytest.raises(zmq.ZMQError) as unreachable:
        send_message(router, [b"head"], b"nobody")
    assert unreachable.value.errno == zmq.EHOSTUNREACH
    dealer.setsockopt(zmq.SNDHWM, 1)
    dealer.disconnect(dealer.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"))
    with pytest.raises(zmq.Again):
        send_message(dealer, [b"head", b"body"])
    dealer.close(0)
    for use in (has_message, receive_named, receive_message, lambda closed: wait_any((router, closed), 0)):
        with pytest.raises(zmq.ZMQError) as closed:
            use(dealer)
        assert closed.value.errno == zmq.ENOTSOCK
    with pytest.raises(TypeError):
        send_message(router, [b"head", "text"])


def test_an_ended_context_is_told(ends: tuple[Socket, Socket]) -> None:
    _, dealer = ends
    told = []

    def wait() -> None:
        try:
            receive_message(dealer)
        except zmq.ContextTerminated:
            told.append(True)
            dealer.close(0)

    waiting = threading.Thread(target=wait)
    waiting.start()
    ends[0].close(0)
    dealer.context.term()
    waiting.join()
    assert told == [True]


def test_a_signal_ends_a_wait(ends: tuple[Socket, Socket]) -> None:
    _, dealer = ends
    before = signal.signal(signal.SIGUSR1, lambda *_: (_ for _ in ()).throw(InterruptedError("told to stop")))
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGUSR1])
    try:
        timer.start()
        with pytest.raises(InterruptedError, match="told to stop"):
            receive_message(dealer)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
