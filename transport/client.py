"""The head's end: a DEALER socket to one worker."""

from __future__ import annotations

import zmq

from placement.errors import WorkerLost, WorkerStartError
from transport.expert_rows import ExpertRows
from transport.keys import HeadKeys, secure_client
from transport.messages import (
    ForwardRequest,
    Hello,
    HelloReply,
    Ping,
    Reply,
    Request,
    WireError,
    WireLimits,
    random_id,
)
from transport.sockets import Context, Socket, open_socket, receive_message, send_message
from transport.wire import decode_reply, encode

_NOBLOCK = int(zmq.NOBLOCK)


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
            WorkerStartError: no answer in time, or one from another worker, model or dtype.
        """
        self.send(Hello(0, self.session))
        reply = self.wait(timeout_s)
        if reply is None:
            raise WorkerStartError(
                f"worker {self.name} at {self.endpoint}: no answer in {timeout_s:g} s: it does not run, "
                "cannot be reached, or was started with other keys"
            )
        if not isinstance(reply, HelloReply):
            raise WorkerStartError(f"worker {self.name} at {self.endpoint}: answered a greeting with {reply}")
        expected = {"name": self.name, "fingerprint": self._limits.fingerprint}
        if dtype is not None:
            expected["dtype"] = dtype
        for field, value in expected.items():
            found = getattr(reply, field)
            if found != value:
                raise WorkerStartError(
                    f"worker {self.name} at {self.endpoint}: serves {field} {found}, expected {value}: "
                    "stop it and start all workers from one plan"
                )
        return reply

    def send_forward(self, request_id: int, epoch: int, layer: int, rows: ExpertRows) -> None:
        """Send one MoE layer's rows, whose `hidden` must not change until the reply.

        Raises:
            WorkerLost: the worker has stopped taking requests.
        """
        self.send(ForwardRequest(request_id, self.session, epoch, layer, rows))

    def ping(self, request_id: int, oldest_epoch: int = 0) -> None:
        """Ask for a sign of life, which a worker gives while it computes; the answer is a `Pong`."""
        self.send(Ping(request_id, self.session, oldest_epoch))

    def send(self, request: Request) -> None:
        """Hand a request to libzmq, without waiting for it to leave.

        Raises:
            WorkerLost: as many requests as may queue are still unsent.
        """
        try:
            send_message(self.socket, encode(request))
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
        try:
            return decode_reply(receive_message(self.socket, _NOBLOCK), self._limits)
        except zmq.Again:
            return None
        except WireError as error:
            raise self._named(error) from None

    def wait(self, timeout_s: float) -> Reply | None:
        """The next answer, or None after `timeout_s`.

        Raises:
            WireError: not an answer in this protocol.
        """
        if timeout_s != self._timeout_s:
            self.socket.setsockopt(zmq.RCVTIMEO, max(0, round(timeout_s * 1000)))
            self._timeout_s = timeout_s
        try:
            return decode_reply(receive_message(self.socket), self._limits)
        except zmq.Again:
            return None
        except WireError as error:
            raise self._named(error) from None

    def close(self) -> None:
        """Drop the connection and what is queued on it."""
        self.socket.close(0)

    def _connected(self) -> Socket:
        socket = open_socket(self._context, zmq.DEALER, self.endpoint, self._limits.max_frame_bytes)
        if self._keys is not None:
            secure_client(socket, self._keys)
        socket.connect(self.endpoint)
        return socket

    def _named(self, error: WireError) -> WireError:
        message = f"worker {self.name} at {self.endpoint}: {error}"
        return WireError(error.code, message, error.request_id)
