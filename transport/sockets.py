"""What both ends share: socket options, and one message's frames in and out of a socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

from transport.messages import WireLimits

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

# Handing libzmq a frame without copying it costs 6 µs, as much as copying so many bytes.
COPY_THRESHOLD_BYTES = 256 * 1024
# No message has so many frames, the ROUTER's name for the peer included; a stranger's further ones are taken
# from the socket and dropped.
MAX_FRAMES = 4

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
    # Messages, not bytes. Both ends drain at once: one that lets this many pile up has stopped.
    zmq.SNDHWM: 64,
    zmq.RCVHWM: 64,
}
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


def open_socket(context: Context, kind: int, endpoint: str, limits: WireLimits) -> Socket:
    """A socket for `endpoint`, not yet bound or connected; it drops a peer whose frame exceeds the limits."""
    socket = context.socket(kind)
    for option, value in _OPTIONS.items():
        socket.setsockopt(option, value)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.max_frame_bytes)
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    socket.copy_threshold = COPY_THRESHOLD_BYTES
    return socket


def send_frames(socket: Socket, frames: Sequence[Any]) -> None:
    """Send one message without waiting. A large tensor is not copied: it must not change until it is sent.

    Raises:
        zmq.ZMQError: EAGAIN, the peer takes no more; EHOSTUNREACH, a ROUTER's peer is gone.
    """
    *first, last = frames
    for frame in first:
        socket.send(frame, _NOBLOCK_MORE)
    socket.send(last, _NOBLOCK, copy=False)


def receive_frames(socket: Socket, flags: int = 0) -> list[zmq.Frame]:
    """Take one message: its first frames, as bytes-like objects over libzmq's memory.

    Raises:
        zmq.Again: there is none now (NOBLOCK), or none came within the socket's RCVTIMEO.
    """
    frame = socket.recv(flags, copy=False)
    frames = [frame]
    while frame.more:
        frame = socket.recv(copy=False)
        if len(frames) < MAX_FRAMES:
            frames.append(frame)
    return frames
