"""What both ends share: socket options, and one message's frames in and out of a socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

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
# pyzmq's own method asks for options that we never use, which takes as long as the sending of a small frame.
_send = zmq.backend.Socket.send
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


def open_socket(context: Context, kind: int, endpoint: str, max_frame_bytes: int) -> Socket:
    """A socket for `endpoint`, not yet bound or connected; it drops a peer that announces a larger frame."""
    socket = context.socket(kind)
    for option, value in _OPTIONS.items():
        socket.setsockopt(option, value)
    socket.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    socket.copy_threshold = COPY_THRESHOLD_BYTES
    return socket


def send_message(socket: Socket, frames: Sequence[Any], peer: bytes | None = None) -> None:
    """Send one message, of one frame or two, without waiting; `peer` is the name a ROUTER sends to.

    A large tensor is not copied: it must not change until it is sent.

    Raises:
        zmq.ZMQError: EAGAIN, the peer takes no more; EHOSTUNREACH, a ROUTER's peer is gone.
    """
    if peer is not None:
        _send(socket, peer, _NOBLOCK_MORE)
    if len(frames) == 1:
        _send(socket, frames[0], _NOBLOCK)
    else:
        _send(socket, frames[0], _NOBLOCK_MORE)
        _send(socket, frames[1], _NOBLOCK, copy=memoryview(frames[1]).nbytes < COPY_THRESHOLD_BYTES)


def receive_message(socket: Socket, flags: int = 0) -> list[zmq.Frame]:
    """Take one message: its frames, as bytes-like objects over libzmq's memory.

    Raises:
        zmq.Again: there is none now (NOBLOCK), or none came within the socket's RCVTIMEO.
    """
    frame = socket.recv(flags, copy=False)
    if not frame.more:
        return [frame]
    tensor = socket.recv(copy=False)
    if not tensor.more:
        return [frame, tensor]
    return [frame, tensor, *_drop_further(socket)]


def _drop_further(socket: Socket) -> list[zmq.Frame]:
    """A stranger's third frame, which makes the message malformed, and no memory for the rest."""
    third = frame = socket.recv(copy=False)
    while frame.more:
        frame = socket.recv(copy=False)
    return [third]
