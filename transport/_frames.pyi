from typing import Any

import zmq

class Frame:
    """One received frame, bytes-like, at an address that is a multiple of 8 bytes."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def get(self, property: int, /) -> int:
        """An integer property of the message it came in, as `zmq_msg_get` knows them; raises zmq.ZMQError."""

def receive(socket: zmq.Socket[bytes], flags: int, /) -> list[Frame] | None:
    """The next message's frames, the first four of more; None for none in time.

    Raises:
        zmq.ZMQError: or one of its kinds, as pyzmq would, here and below.
    """

def receive_named(socket: zmq.Socket[bytes], flags: int, /) -> list[Any] | None:
    """The same of a ROUTER: the peer's name in bytes, then three frames at most."""

def send(socket: zmq.Socket[bytes], /, *frames: Any) -> None:
    """Copy a message of bytes-like frames to libzmq, without waiting."""

def events(socket: zmq.Socket[bytes], /) -> int:
    """ZMQ_EVENTS. What libzmq has to do for this socket is done meanwhile."""
