"""The head's end: a DEALER socket to one worker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from placement.errors import WorkerLost, WorkerStartError
from transport.expert_rows import ExpertRows
from transport.forward import Frame, encode_request
from transport.guard import ClientGuard
from transport.keys import HeadKeys, secure_client
from transport.messages import (
    Hello,
    HelloReply,
    Ping,
    Reply,
    Request,
    WireError,
    WireLimits,
    random_id,
)
from transport.sockets import Context, Socket, monitored, open_socket, receive_message, send_message
from transport.wire import decode_reply, encode

# A first greeting is given this long, each further one twice as long as the one before.
GREET_AGAIN_S = 3.0
_NOBLOCK = int(zmq.NOBLOCK)
_CONNECTED = int(zmq.EVENT_CONNECTED)


class WorkerClient:
    """The head's connection to one worker, for one thread. Only `hello` and `wait` block.

    libzmq connects in the background, and reconnects by itself. A message that is on its way when the
    connection breaks is lost. So the caller must set itself a deadline, and ask again under a new request id.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        limits: WireLimits,
        *,
        name: str,
        keys: HeadKeys | None = None,
        session: int | None = None,
    ) -> None:
        """Begin to connect.

        Args:
            name: of the worker, to which it is held.
            session: the number of this head process, one for all its clients; None makes one up.
        """
        self.name = name
        self.session = random_id() if session is None else session
        self.endpoint = endpoint
        self._context = context
        self._limits = limits
        self._keys = keys
        self._timeout_s: float | None = None
        self._guard: ClientGuard | None = None
        self._monitor: Socket | None = None
        self.socket: Socket = self._connected()
        """For a `zmq.Poller` over several workers; readable when `receive` has something."""

    def reopen(self) -> None:
        """Begin to connect anew, over another `socket`; what is on its way is lost."""
        self.close()
        self.socket = self._connected()
        self._timeout_s = None

    def hello(self, timeout_s: float, *, dtype: str | None = None) -> HelloReply:
        """Ask the worker who it is, before anything else, and hold it to this model.

        Args:
            timeout_s: how long to wait for the answer, connecting included.
            dtype: what rows it must take ("float32", "bfloat16"), None for any.

        Raises:
            WorkerStartError: no answer in time, or one from another worker, model or dtype. The client is
                closed then: libzmq's thread would wait for ever to tell its monitor that it has connected
                again, once nobody reads that.
        """
        reply = self._greeted(timeout_s)
        why = self._why_not(reply, timeout_s, dtype)
        if why or not isinstance(reply, HelloReply):
            self.close()
            raise WorkerStartError(f"worker {self.name} at {self.endpoint}: {why}")
        return reply

    def _why_not(self, reply: Reply | None, timeout_s: float, dtype: str | None) -> str:
        """Why an answer to a greeting is not the one of this worker; "" if it is."""
        if reply is None:
            return (
                f"no answer in {timeout_s:g} s: it does not run, cannot be reached, or was started with "
                "other keys"
            )
        if not isinstance(reply, HelloReply):
            return f"answered a greeting with {reply}"
        expected = {"name": self.name, "fingerprint": self._limits.fingerprint}
        if dtype is not None:
            expected["dtype"] = dtype
        for field, value in expected.items():
            found = getattr(reply, field)
            if found != value:
                return (
                    f"serves {field} {found}, expected {value}: stop it and start all workers from one plan"
                )
        return ""

    def _greeted(self, timeout_s: float) -> Reply | None:
        """The answer to a greeting, sent anew over a fresh connection where none comes.

        A handshake that takes longer than libzmq allows, on a busy machine, loses what waits behind it.
        """
        until_s = time.monotonic() + timeout_s
        patience_s = GREET_AGAIN_S
        while True:
            self.send(Hello(0, self.session))
            left_s = until_s - time.monotonic()
            reply = self.wait(max(0.0, min(patience_s, left_s)))
            if reply is not None or left_s <= patience_s:
                return reply
            self.reopen()
            patience_s *= 2

    def send_forward(self, request_id: int, epoch: int, layer: int, rows: ExpertRows) -> None:
        """Send one MoE layer's rows, whose `hidden` must not change until the reply.

        Raises:
            WorkerLost: the worker has stopped taking requests.
        """
        self._send(encode_request(request_id, self.session, epoch, layer, rows))

    def ping(self, request_id: int, oldest_epoch: int = 0) -> None:
        """Ask for a sign of life, which a worker gives while it computes; the answer is a `Pong`."""
        self.send(Ping(request_id, self.session, oldest_epoch))

    def send(self, request: Request) -> None:
        """Hand a request to libzmq, without waiting for it to leave.

        Raises:
            WorkerLost: as many requests as may queue are still unsent.
        """
        self._send(encode(request))

    def _send(self, frames: Sequence[Frame]) -> None:
        try:
            send_message(self.socket, frames)
        except zmq.Again:
            raise WorkerLost(
                f"worker {self.name} at {self.endpoint}: takes no more requests: "
                "it hangs or cannot be reached"
            ) from None

    def receive(self) -> Reply | None:
        """The next answer if one has come, in the worker's order.

        The answer is checked against the limits, but not against its request. The caller checks whether it
        still waits for it, and whether the number of rows is right.

        Raises:
            WireError: not an answer in this protocol.
        """
        frames = receive_message(self.socket, _NOBLOCK)
        return None if frames is None else self._decoded(frames)

    def look(self) -> None:
        """Reset the connection if the worker sends a message without an end; cheap, ten times a second do."""
        if (guard := self._told_guard()) is not None:
            guard.look()

    def carried_bytes(self) -> int:
        """Bytes that have reached the worker or come from it over the present connection.

        0 where that cannot be told: of local sockets.
        """
        guard = self._told_guard()
        return 0 if guard is None else guard.carried_bytes()

    def _told_guard(self) -> ClientGuard | None:
        """The guard, told of connections that have come about."""
        if self._guard is None or self._monitor is None:
            return None
        while self._monitor.poll(0):
            self._guard.connected(int(parse_monitor_message(self._monitor.recv_multipart())["value"]))
        return self._guard

    def wait(self, timeout_s: float) -> Reply | None:
        """The next answer, or None after `timeout_s`.

        Raises:
            WireError: not an answer in this protocol.
        """
        if timeout_s != self._timeout_s:
            self.socket.setsockopt(zmq.RCVTIMEO, max(0, round(timeout_s * 1000)))
            self._timeout_s = timeout_s
        frames = receive_message(self.socket)
        return None if frames is None else self._decoded(frames)

    def close(self) -> None:
        """Drop the connection and what is queued on it."""
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close(0)
            self._monitor = None
        self.socket.close(0)

    def _connected(self) -> Socket:
        socket = open_socket(self._context, zmq.DEALER, self.endpoint, self._limits.max_frame_bytes)
        if self._keys is not None:
            secure_client(socket, self._keys)
        if self.endpoint.startswith("tcp://"):
            message_bytes = self._limits.max_frame_bytes + self._limits.max_header_bytes
            self._guard = ClientGuard(socket, message_bytes)
            self._monitor = monitored(socket, _CONNECTED)
        socket.connect(self.endpoint)
        return socket

    def _decoded(self, frames: list[Any]) -> Reply:
        if self._guard is not None:
            self._guard.delivered = True
        try:
            return decode_reply(frames, self._limits)
        except WireError as error:
            message = f"worker {self.name} at {self.endpoint}: {error}"
            raise WireError(error.code, message, error.request_id) from None
