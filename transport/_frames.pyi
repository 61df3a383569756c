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
    """Copy a message of 1 to 4 bytes-like frames to libzmq, all or none, without waiting."""

def events(socket: zmq.Socket[bytes], /) -> int:
    """ZMQ_EVENTS. What libzmq has to do for this socket is done meanwhile."""

def wait_any(sockets: tuple[zmq.Socket[bytes], ...], timeout_ms: int, /) -> list[int]:
    """Sleep until some sockets can be received from: their places; none after the time."""

def wait_epoll(fd: int, /) -> None:
    """Sleep until an epoll has an event, and take it. Linux only."""

def read_request(
    frames: list[Any], limits: tuple[int, int, int, int, int], row_bytes: tuple[int, ...], /
) -> tuple[int, int, int, int, int, int] | int | None:
    """Check a `ForwardRequest`'s two frames, all but its layer.

    Args:
        limits: version, hidden_size, top_k, num_experts, max_rows.
        row_bytes: of a row in each form, 0 for a form that such rows cannot have.

    Returns:
        request id, session, epoch, layer, form, num_rows; or the number of what is wrong (`forward.py`); or
        None where the message is no forward message.
    """

def read_reply(
    frames: list[Any], limits: tuple[int, int, int, int, int], /
) -> tuple[int, int, float] | int | None:
    """Check a `ForwardReply`'s two frames: request id, num_rows, compute_s; else as `read_request`."""

def request_header(
    version: int,
    form: int,
    num_rows: int,
    hidden_size: int,
    top_k: int,
    layer: int,
    request_id: int,
    session: int,
    epoch: int,
    expert_ids: Any,
    weights: Any,
    scale_exponents: Any,
    /,
) -> bytes:
    """The first frame of a `ForwardRequest`, of unsigned numbers and contiguous arrays."""

def reply_header(
    version: int, num_rows: int, hidden_size: int, request_id: int, compute_s: float, saturated: Any, /
) -> bytes:
    """The first frame of a `ForwardReply`, likewise."""
