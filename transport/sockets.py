"""What both ends share: socket options, one message's frames in and out of a socket, waiting for several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import zmq
from numpy import ndarray

from transport.native import frames

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

# Handing a frame to libzmq without a copy costs 6 µs. Copying a frame of this size takes as long.
COPY_THRESHOLD_BYTES = 256 * 1024
_OPTIONS = {
    zmq.LINGER: 0,
    # A silent peer is given up after 10 s; a cable pulled for 5 s loses nothing.
    zmq.HEARTBEAT_IVL: 2000,
    zmq.HEARTBEAT_TIMEOUT: 10_000,
    zmq.HEARTBEAT_TTL: 10_000,
    zmq.HANDSHAKE_IVL: 2000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 1000,
    zmq.CONNECT_TIMEOUT: 1000,
    # In messages, not bytes. Both ends empty their queues at once: a longer one means the peer has stopped.
    zmq.SNDHWM: 64,
    zmq.RCVHWM: 64,
}
_send = zmq.backend.Socket.send
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)


def open_socket(context: Context, kind: int, endpoint: str, max_frame_bytes: int) -> Socket:
    """A socket for `endpoint`, not yet bound or connected; it drops a peer that announces a larger frame."""
    socket = context.socket(kind)
    for option, value in _OPTIONS.items():
        socket.setsockopt(option, value)
    socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    socket.copy_threshold = COPY_THRESHOLD_BYTES
    return socket


def monitored(socket: Socket, events: int) -> Socket:
    """A socket that tells `events` of another one, until that is called `disable_monitor`.

    It has no limit: libzmq's thread, which serves all sockets of the context, waits until an event is taken.
    Read it or close it, after `disable_monitor`.
    """
    address = f"inproc://monitor-{os.urandom(8).hex()}"
    socket.monitor(address, events)
    monitor: Socket = socket.context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.RCVHWM, 0)
    monitor.connect(address)
    return monitor


def send_message(socket: Socket, message: Sequence[Any], peer: bytes | None = None) -> None:
    """Send one message, of one frame or two, without waiting; `peer` is the name a ROUTER sends to.

    A large tensor is not copied: it must not change until it is sent.

    Raises:
        zmq.ZMQError: EAGAIN, the peer takes no more; EHOSTUNREACH, a ROUTER's peer is gone.
    """
    last = message[-1]
    if (last.nbytes if isinstance(last, ndarray) else len(last)) >= COPY_THRESHOLD_BYTES:
        first = message[:-1] if peer is None else (peer, *message[:-1])
        for frame in first:
            _send(socket, frame, _NOBLOCK_MORE)
        _send(socket, last, _NOBLOCK, copy=False)
        return
    if peer is None:
        frames.send(socket, *message)
    else:
        frames.send(socket, peer, *message)


def receive_message(socket: Socket, flags: int = 0) -> list[frames.Frame] | None:
    """Take one message: its frames, as bytes-like objects over libzmq's memory; of too many the first four.

    Returns:
        None if there is none now (NOBLOCK), or none came within the socket's RCVTIMEO.
    """
    return frames.receive(socket, flags)


def receive_named(socket: Socket) -> list[Any] | None:
    """Take one message of a ROUTER without waiting: the peer's name as bytes, then as `receive_message`."""
    return frames.receive_named(socket, _NOBLOCK)


def has_message(socket: Socket) -> bool:
    """Whether one can be received."""
    return bool(frames.events(socket) & _POLLIN)


def wait_any(sockets: tuple[Socket, ...], timeout_ms: int) -> list[int]:
    """Sleep until some sockets have a message: their places, or none after the time."""
    return frames.wait_any(sockets, timeout_ms)
