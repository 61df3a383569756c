"""The worker's end: a ROUTER socket that any number of peers reach, each answered on its own connection."""

from __future__ import annotations

import errno
import logging
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from placement.errors import WorkerStartError
from transport.doorbell import Doorbell
from transport.guard import MAX_CONNECTIONS, Connection, Guard
from transport.keys import WorkerKeys, require_keys, secure_server
from transport.messages import ErrorCode, Reply, Request, WireError, WireLimits
from transport.sockets import Context, has_message, open_socket, receive_named, send_message
from transport.wire import decode_request, encode

log = logging.getLogger(__name__)

_UNKNOWN = Connection(-1, -1, "", is_tcp=False)

NOT_AN_ENDPOINT = "not an endpoint: expected tcp://ADDRESS:PORT, ipc://PATH or inproc://NAME"
NO_SUCH_ADDRESS = "this machine has no such address: bind one of its own"
_BIND_FAILURES = {
    errno.EADDRINUSE: "it is in use by another process: choose another port, or * to let the system choose",
    errno.EADDRNOTAVAIL: NO_SUCH_ADDRESS,
    errno.ENODEV: NO_SUCH_ADDRESS,
    errno.EACCES: "not allowed: ports below 1024 need root, an ipc path needs a directory you may write",
    errno.ENOENT: "the directory of the ipc path does not exist: make it first",
    errno.ENAMETOOLONG: "the ipc path is too long: at most 107 bytes",
    errno.EINVAL: NOT_AN_ENDPOINT,
    errno.EPROTONOSUPPORT: NOT_AN_ENDPOINT,
}


class Server:
    """A bound ROUTER socket. Any number of threads may `wait`; all else is for one at a time, under a lock.

    ROUTER makes up the peers' names, so no peer can take another's name. If an answer's connection is gone,
    the answer is dropped. libzmq reconnects but never resends, so a peer that still wants it asks again.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        limits: WireLimits,
        *,
        name: str,
        keys: WorkerKeys | None = None,
        max_frame_bytes: int | None = None,
    ) -> None:
        """Bind.

        Args:
            name: for the messages of errors.
            max_frame_bytes: less than the limits allow, where only small messages are expected.

        Raises:
            KeysRequired: `endpoint` can be reached from other machines and `keys` is None.
            WorkerStartError: the port is in use, or the endpoint cannot be bound.
        """
        require_keys(endpoint, keys)
        self._limits = limits
        self._authenticator: ThreadAuthenticator | None = None
        max_frame_bytes = max_frame_bytes or limits.max_frame_bytes
        self._socket = open_socket(context, zmq.ROUTER, endpoint, max_frame_bytes)
        self._guard: Guard | None = None
        # Which connection each peer's messages come on; None where nobody guards it.
        self._connections: dict[bytes, Connection | None] = {}
        try:
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            if keys is not None:
                self._authenticator = secure_server(self._socket, keys)
            if not endpoint.startswith("inproc://"):
                message_bytes = max_frame_bytes + min(max_frame_bytes, limits.max_header_bytes)
                self._guard = Guard(self._socket, message_bytes, f"worker {name}")
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._close_socket()
            reason = _BIND_FAILURES.get(error.errno or 0, str(error))
            raise WorkerStartError(f"worker {name}: cannot bind {endpoint}: {reason}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._doorbell = Doorbell(self._socket.fileno())

    def wait(self) -> bool:
        """Sleep until a message may have come; False once the server is shut."""
        return self._doorbell.wait()

    def receive(self) -> tuple[bytes, Request | WireError] | None:
        """The next message and its peer, or None."""
        message = receive_named(self._socket)
        if message is None:
            return None
        peer, *frames = message
        try:
            if (connection := self._connections.get(peer, _UNKNOWN)) is _UNKNOWN:
                connection = self._learn(peer, frames[0])
            if connection is not None:
                connection.delivered = True
            return peer, decode_request(frames, self._limits)
        except WireError as error:
            return peer, error
        except MemoryError:
            return peer, WireError(ErrorCode.NO_MEMORY, "no memory for this message")
        except Exception as error:
            # An error of ours, which must not take the loop along. What sent it is told nothing of it.
            log.error("a message could not be read: %s: %s", type(error).__name__, error)
            return peer, WireError(ErrorCode.INTERNAL, "this message could not be read: see the worker's log")

    def pending(self) -> bool:
        """Whether `receive` has something. Ask after each `receive` and `send`, as `wait` may stay silent."""
        return has_message(self._socket)

    def send(self, peer: bytes, reply: Reply) -> bool:
        """Answer a peer; False if its connection is gone or it has stopped reading."""
        try:
            send_message(self._socket, encode(reply), peer)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EAGAIN, errno.EHOSTUNREACH):
                raise
            return False
        return True

    def _learn(self, peer: bytes, frame: Any) -> Connection | None:
        """Which connection a peer's messages come on, for as long as it lasts."""
        if self._guard is None:
            return None
        if len(self._connections) >= MAX_CONNECTIONS:
            # Most of them are gone: ROUTER gives each connection a name of its own.
            self._connections.clear()
        try:
            connection = self._guard.of(int(frame.get(zmq.SRCFD)))
        except zmq.ZMQError:  # libzmq does not say it of every frame, such as an empty one
            return None
        if connection is not None:
            self._connections[peer] = connection
        return connection

    def shut(self) -> None:
        """Let every `wait` return False, from any thread."""
        self._doorbell.shut()

    def close(self) -> None:
        """Free socket and port; no thread may be in `wait`."""
        self._doorbell.close()
        self._close_socket()

    def _close_socket(self) -> None:
        if self._guard is not None:
            self._guard.stop()
            self._guard = None
        self._socket.close(0)
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
