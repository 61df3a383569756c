"""The experts of a box behind a ZeroMQ socket: requests in, partial sums out. Knows nothing of Ray."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

import zmq

from placement.errors import CheckpointError
from transport.keys import WorkerKeys
from transport.loops import end_process
from transport.messages import (
    ErrorCode,
    ErrorReply,
    ForwardReply,
    ForwardRequest,
    Hello,
    Ping,
    Reply,
    Request,
    WireError,
    WireLimits,
)
from transport.server import Server
from transport.sockets import Context
from workers.gpu.errors import DeviceFull, DeviceLost
from workers.partial_sum import ExpertNotHeld
from workers.pulse import FixedExperts, PulseHandler, answer, refusal
from workers.sessions import Sessions
from workers.tiers import ExpertTier, StillLoading
from workers.waiting import Waiting

log = logging.getLogger(__name__)

# Messages one thread takes at a stretch, so that a flood of them cannot keep it from computing.
MAX_RECEIVED = 64
# Two threads: while one computes, the other answers.
NUM_THREADS = 2


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """A look at a running service, for its tests; counts are since its start.

    `refused` counts messages answered with an error. `last_failure` is the cause of the last `internal`
    error, which no asker is told.
    """

    running: bool
    queue_depth: int
    served: int
    refused: int
    last_failure: str


@dataclass(slots=True)
class _Counts:
    served: int = 0
    refused: int = 0
    last_failure: str = ""


class ExpertService:
    """Serves a box's experts on one endpoint until stopped.

    Two threads share the socket. Both sleep on it, and one message wakes one of them: it takes what has come,
    under the lock, and computes it itself if nobody computes yet. So a request never changes threads, which
    would cost more than all of the message handling, and while one thread computes the other is already
    waiting to answer pings, refuse what is malformed and queue the rest. One request is computed at a time.

    What fails in a request is answered. What fails in the loop itself ends the process, so that no worker
    lives on that answers and does not compute.
    """

    def __init__(
        self,
        name: str,
        experts: ExpertTier,
        limits: WireLimits,
        endpoint: str = "tcp://127.0.0.1:*",
        *,
        dtype: str,
        keys: WorkerKeys | None = None,
        context: Context | None = None,
        handler: PulseHandler | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        """Nothing is bound before `start`.

        Args:
            dtype: what rows come in, as `HelloReply` tells it.
            keys: needed on every endpoint that other machines can reach.
            context: the asker's, for inproc endpoints; otherwise the service has its own.
            handler: what greetings are answered with; None for experts that never change.
            sessions: shared with the worker's `PulseServer`, if it has one.
        """
        self.name = name
        self._experts = experts
        self._limits = limits
        self._bind_to = endpoint
        self._keys = keys
        self._shared_context = context
        self._handler = handler or FixedExperts(name, limits, dtype, experts.num_experts)
        self._sessions = sessions or Sessions()
        self._lock = threading.Lock()
        self._waiting = Waiting(limits)
        self._computing = False
        self._stopping = False
        self._counts = _Counts()
        self._server: Server | None = None
        self._context: Context | None = None
        self._threads: list[threading.Thread] = []

    @property
    def endpoint(self) -> str:
        """Where it is reached, the port resolved; what it was asked to bind before `start`."""
        return self._server.endpoint if self._server is not None else self._bind_to

    def start(self) -> None:
        """Bind and serve.

        Raises:
            KeysRequired: other machines can reach the endpoint, and there are no keys.
            WorkerStartError: the endpoint cannot be bound.
        """
        self._stopping = False
        self._context = self._shared_context or zmq.Context()
        try:
            self._server = Server(self._context, self._bind_to, self._limits, name=self.name, keys=self._keys)
        except BaseException:
            self._close_context()
            raise
        self._threads = [
            threading.Thread(target=self._serve, args=(self._server,), name=f"{self.name}-{i}", daemon=True)
            for i in range(NUM_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop serving and free the port, after the request that is being computed. Harmless when stopped."""
        server = self._server
        if server is None:
            return
        with self._lock:
            self._stopping = True
            for request in self._waiting.clear():
                self._sessions.closed(request.session)
        server.shut()
        for thread in self._threads:
            thread.join()
        self._server = None
        server.close()
        self._close_context()

    def health(self) -> ServiceHealth:
        with self._lock:
            return ServiceHealth(
                running=all(thread.is_alive() for thread in self._threads) and self._server is not None,
                queue_depth=len(self._waiting) + self._computing,
                served=self._counts.served,
                refused=self._counts.refused,
                last_failure=self._counts.last_failure,
            )

    def __enter__(self) -> ExpertService:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _close_context(self) -> None:
        if self._context is not None and self._context is not self._shared_context:
            self._context.term()
        self._context = None

    def _serve(self, server: Server) -> None:
        try:
            self._serve_until_stopped(server)
        except zmq.ContextTerminated:
            return
        except BaseException as error:
            end_process(f"worker {self.name}: service", error)

    def _serve_until_stopped(self, server: Server) -> None:
        more = False
        while not self._stopping and (more or server.wait()):
            with self._lock:
                more = self._receive(server)
                job = self._next()
            while job is not None:
                peer, request = job
                reply = self._compute(request)
                with self._lock:
                    self._answer(server, peer, reply)
                    # Before what has come is answered: a Pong does not count a request that is done.
                    self._sessions.computed(request.session)
                    self._computing = False
                    more = server.pending() and self._receive(server)
                    job = self._next()

    def _receive(self, server: Server) -> bool:
        """Take what has come and answer all but forwards; True if there may be more."""
        for _ in range(MAX_RECEIVED):
            received = server.receive()
            if received is None:
                return False
            peer, message = received
            if isinstance(message, ForwardRequest):
                self._accept(server, peer, message)
            else:
                self._answer(server, peer, self._reply(message))
            if not server.pending():
                return False
        return True

    def _accept(self, server: Server, peer: bytes, request: ForwardRequest) -> None:
        """Queue a request, or refuse it."""
        request_id, session, epoch, _, _ = request
        self._handler.heard()
        oldest_epoch = self._sessions.received(session, request_id)
        if epoch < oldest_epoch:
            message = f"plan epoch {epoch} is over, this head is at {oldest_epoch} or later"
            refused = refusal(request_id, ErrorCode.WRONG_EPOCH, message)
        elif self._waiting.add(peer, request):
            return
        else:
            message = f"{len(self._waiting)} requests wait here already: ask again"
            refused = refusal(request_id, ErrorCode.BUSY, message)
        self._sessions.closed(session)
        self._answer(server, peer, refused)

    def _next(self) -> tuple[bytes, ForwardRequest] | None:
        """The request to compute now, if there is one and nobody computes."""
        if self._computing or self._stopping:
            return None
        job = self._waiting.next()
        if job is not None:
            self._computing = True
            self._sessions.computing(job[1].session, job[1].request_id)
        return job

    def _reply(self, message: Request | WireError) -> Reply:
        """The answer to all that needs no computing; orders belong on the pulse endpoint."""
        if not isinstance(message, (Hello, Ping, WireError)):
            text = "orders are taken on the worker's pulse endpoint only"
            return refusal(message.request_id, ErrorCode.MALFORMED, text)
        try:
            if not isinstance(message, WireError):
                self._handler.heard()
            return answer(message, self._handler, self._sessions)
        except Exception as error:
            return self._failed(message.request_id, type(message).__name__, error)

    def _compute(self, request: ForwardRequest) -> Reply:
        started = time.perf_counter()
        try:
            partial_sum = self._experts.forward(request.layer, request.rows)
        except Exception as error:
            return self._refuse(request, error)
        compute_s = time.perf_counter() - started
        return ForwardReply(request.request_id, partial_sum.values, partial_sum.saturated, compute_s)

    def _refuse(self, request: ForwardRequest, error: Exception) -> Reply:
        request_id = request.request_id
        if isinstance(error, ExpertNotHeld):
            return refusal(request_id, ErrorCode.EXPERT_NOT_HELD, str(error))
        if isinstance(error, StillLoading):
            return refusal(request_id, ErrorCode.LOADING, str(error))
        if isinstance(error, CheckpointError):
            # Whoever asked is the model's user, and can do something about its files.
            self._counts.last_failure = f"layer {request.layer}: {error}"
            return refusal(request_id, ErrorCode.MODEL_FILES, str(error))
        if isinstance(error, (DeviceFull, DeviceLost)):
            log.error("worker %s: layer %d: %s", self.name, request.layer, error)
            self._counts.last_failure = f"layer {request.layer}: {error}"
            is_full = isinstance(error, DeviceFull)
            return refusal(request_id, ErrorCode.NO_MEMORY if is_full else ErrorCode.INTERNAL, str(error))
        if isinstance(error, MemoryError) or "can't allocate memory" in str(
            error
        ):  # torch raises RuntimeError
            message = f"worker {self.name} has no memory for {request.rows.num_rows} rows"
            self._counts.last_failure = f"layer {request.layer}: {message}"
            return refusal(request_id, ErrorCode.NO_MEMORY, message)
        return self._failed(request_id, f"layer {request.layer}", error)

    def _failed(self, request_id: int, what: str, error: Exception) -> ErrorReply:
        """The cause is for this machine's log, not for whoever asked."""
        log.error("worker %s: %s failed", self.name, what, exc_info=error)
        self._counts.last_failure = f"{what}: {type(error).__name__}: {error}"
        message = f"worker {self.name} failed in {what}: see its log"
        return refusal(request_id, ErrorCode.INTERNAL, message)

    def _answer(self, server: Server, peer: bytes, reply: Reply) -> None:
        if isinstance(reply, ForwardReply):
            self._counts.served += 1
        elif isinstance(reply, ErrorReply):
            self._counts.refused += 1
        try:
            server.send(peer, reply)
        except zmq.ZMQError:
            raise
        except Exception as error:
            # What a tier gave is no sum, or memory ran out: still an answer.
            server.send(peer, self._failed(reply.request_id, type(reply).__name__, error))
