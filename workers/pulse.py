"""A worker's second socket: signs of life and orders, answered while its experts load or compute."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

import zmq

from placement.errors import PotluckError
from transport.keys import WorkerKeys
from transport.loops import end_process
from transport.messages import (
    MAX_TEXT_CHARS,
    Drop,
    ErrorCode,
    ErrorReply,
    ForwardRequest,
    Held,
    Hello,
    HelloReply,
    Hold,
    Ping,
    Pong,
    Reply,
    Request,
    Shutdown,
    WireError,
    WireLimits,
    WorkerState,
    random_id,
)
from transport.server import Server
from transport.sockets import Context
from workers.sessions import Sessions

log = logging.getLogger(__name__)


class PulseHandler(Protocol):
    """The worker behind the sockets. Any thread may call it, and nothing here may wait."""

    @property
    def instance(self) -> int:
        """A random number of this process."""
        ...

    @property
    def state(self) -> WorkerState: ...

    @property
    def changes(self) -> int:
        """Orders finished since the start."""
        ...

    def heard(self) -> None:
        """A head has said something: it is there."""
        ...

    def greet(self, hello: Hello) -> HelloReply: ...

    def obey(self, order: Hold | Drop) -> Held:
        """Begin with an order, or say how far it is; raises PotluckError to refuse."""
        ...

    def shut_down(self) -> None:
        """End the worker soon; the answer has been handed to the socket."""
        ...


class FixedExperts:
    """The handler of a worker that serves the same experts from its start to its end."""

    changes = 0
    state = WorkerState.READY

    def __init__(self, name: str, limits: WireLimits, dtype: str, num_experts: int) -> None:
        self.instance = random_id()
        self._name = name
        self._limits = limits
        self._dtype = dtype
        self._num_experts = num_experts

    def heard(self) -> None:
        """Nothing depends on it."""

    def greet(self, hello: Hello) -> HelloReply:
        return HelloReply(
            hello.request_id,
            self._name,
            self.instance,
            self.state,
            self._limits.fingerprint,
            "",
            self._dtype,
            self._num_experts,
            "",
        )

    def obey(self, order: Hold | Drop) -> Held:
        raise PotluckError(f"worker {self._name} takes no orders")

    def shut_down(self) -> None:
        """Refused by whoever started it: it ends with its service."""


def answer(message: Request | WireError, handler: PulseHandler, sessions: Sessions) -> Reply:
    """The answer to what needs no experts; a forward request is refused."""
    if isinstance(message, Ping):
        sessions.pinged(message.session, message.oldest_epoch)
        seen = sessions.seen(message.session)
        return Pong(
            message.request_id,
            handler.instance,
            handler.state,
            seen.queue_depth,
            seen.received_id,
            seen.open_ids,
            seen.computing_id,
            seen.computing_s,
            handler.changes,
        )
    if isinstance(message, Hello):
        return handler.greet(message)
    if isinstance(message, WireError):
        return refusal(message.request_id, message.code, str(message))
    if isinstance(message, ForwardRequest):
        text = "experts are asked on the worker's other endpoint"
        return refusal(message.request_id, ErrorCode.MALFORMED, text)
    if isinstance(message, Shutdown):
        return Held(message.request_id, 0, True, 0, "")
    try:
        return handler.obey(message)
    except PotluckError as error:
        return refusal(message.request_id, ErrorCode.REFUSED, str(error))


def refusal(request_id: int, code: ErrorCode, message: str) -> ErrorReply:
    """An error reply, its text cut to what a message may hold."""
    return ErrorReply(request_id, code, message[:MAX_TEXT_CHARS])


class PulseServer:
    """Answers on the pulse endpoint from `start` to `stop`, in a thread and a ZeroMQ context of its own.

    So neither a flood on the data socket nor anything that the experts do keeps a head from its answer.
    """

    def __init__(
        self,
        name: str,
        handler: PulseHandler,
        sessions: Sessions,
        limits: WireLimits,
        endpoint: str = "tcp://127.0.0.1:*",
        *,
        keys: WorkerKeys | None = None,
    ) -> None:
        """Nothing is bound before `start`; arguments as of `ExpertService`, which shares `sessions`."""
        self.name = name
        self._handler = handler
        self._sessions = sessions
        self._limits = limits
        self._bind_to = endpoint
        self._keys = keys
        self._context: Context | None = None
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def endpoint(self) -> str:
        """Where it is reached, the port resolved; what it was asked to bind before `start`."""
        return self._server.endpoint if self._server is not None else self._bind_to

    def start(self) -> None:
        """Bind and answer.

        Raises:
            KeysRequired: other machines can reach the endpoint, and there are no keys.
            WorkerStartError: the endpoint cannot be bound.
        """
        context: Context = zmq.Context()
        try:
            server = Server(
                context,
                self._bind_to,
                self._limits,
                name=self.name,
                keys=self._keys,
                max_frame_bytes=self._limits.max_plain_bytes,
            )
        except BaseException:
            context.term()
            raise
        self._context, self._server = context, server
        self._thread = threading.Thread(
            target=self._serve, args=(server,), name=f"{self.name}-pulse", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port. Harmless when stopped."""
        if self._server is None or self._context is None or self._thread is None:
            return
        self._server.shut()
        self._thread.join()
        self._server.close()
        self._context.term()
        self._server = self._context = self._thread = None

    def __enter__(self) -> PulseServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _serve(self, server: Server) -> None:
        try:
            while server.wait():
                while (received := server.receive()) is not None:
                    self._answer(server, *received)
        except zmq.ContextTerminated:
            return
        except BaseException as error:
            end_process(f"worker {self.name}: pulse", error)

    def _answer(self, server: Server, peer: bytes, message: Request | WireError) -> None:
        try:
            self._handler.heard()
            reply = answer(message, self._handler, self._sessions)
        except Exception:
            log.exception("worker %s: %s failed", self.name, type(message).__name__)
            request_id = message.request_id
            reply = refusal(request_id, ErrorCode.INTERNAL, f"worker {self.name} failed: see its log")
        server.send(peer, reply)
        if isinstance(message, Shutdown):
            self._handler.shut_down()
