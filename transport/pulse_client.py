"""The head's end of a worker's pulse: greetings, pings and orders, and whether the connection stands."""

from __future__ import annotations

from enum import Enum, auto

import zmq
from zmq.utils.monitor import parse_monitor_message

from transport.guard import ClientGuard
from transport.keys import HeadKeys, secure_client
from transport.messages import Hello, Ping, Reply, Request, WireError, WireLimits
from transport.sockets import Context, Socket, monitored, open_socket, receive_message, send_message
from transport.wire import decode_reply, encode

_NOBLOCK = int(zmq.NOBLOCK)
_OPTIONS = {
    # Nothing waits for a connection that is not there: an old ping says nothing.
    zmq.IMMEDIATE: 1,
    zmq.HEARTBEAT_IVL: 500,
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.HEARTBEAT_TTL: 3000,
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 250,
}


class Link(Enum):
    """What happened to the connection."""

    UP = auto()
    DOWN = auto()
    REFUSED = auto()
    """The other end has no such key, or speaks something else; libzmq keeps trying."""


_LINKS: dict[int, Link] = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: Link.UP,
    zmq.EVENT_DISCONNECTED: Link.DOWN,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: Link.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Link.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Link.REFUSED,
}
_CONNECTED = int(zmq.EVENT_CONNECTED)
_EVENTS = sum(map(int, _LINKS)) + _CONNECTED


class PulseClient:
    """A connection to one worker's pulse endpoint, for one thread. Nothing blocks.

    libzmq connects in the background and reconnects by itself, whatever is the worker's instance then.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        limits: WireLimits,
        *,
        name: str,
        session: int,
        keys: HeadKeys | None = None,
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self.session = session
        self._limits = limits
        self.socket: Socket = open_socket(context, zmq.DEALER, endpoint, limits.max_plain_bytes)
        """For a `zmq.Poller`; readable when `receive` has something."""
        for option, value in _OPTIONS.items():
            self.socket.setsockopt(option, value)
        if keys is not None:
            secure_client(self.socket, keys)
        self._guard = ClientGuard(self.socket, 2 * limits.max_plain_bytes)
        self.monitor: Socket = monitored(self.socket, _EVENTS)
        """For a `zmq.Poller`; readable when `links` has something."""
        self.socket.connect(endpoint)

    def hello(self, request_id: int) -> bool:
        """Ask who the worker is; the answer is a `HelloReply`. False as of `send`."""
        return self.send(Hello(request_id, self.session))

    def ping(self, request_id: int, oldest_epoch: int) -> bool:
        """Ask for a sign of life; the answer is a `Pong`. False as of `send`."""
        return self.send(Ping(request_id, self.session, oldest_epoch))

    def send(self, request: Request) -> bool:
        """Hand a request to libzmq; False where there is no connection, or the worker takes no more.

        Whoever is pinged is looked at too: a connection whose message never ends is reset.
        """
        self._guard.look()
        try:
            send_message(self.socket, encode(request))
        except zmq.Again:
            return False
        return True

    def receive(self) -> Reply | None:
        """The next answer if one has come.

        Raises:
            WireError: not an answer in this protocol.
        """
        frames = receive_message(self.socket, _NOBLOCK)
        if frames is None:
            return None
        self._guard.delivered = True
        try:
            return decode_reply(frames, self._limits)
        except WireError as error:
            message = f"worker {self.name} at {self.endpoint}: {error}"
            raise WireError(error.code, message, error.request_id) from None

    def links(self) -> list[Link]:
        """What has happened to the connection since the last call, in order."""
        found: list[Link] = []
        while True:
            try:
                message = parse_monitor_message(self.monitor.recv_multipart(_NOBLOCK))
            except zmq.Again:
                return found
            event = message["event"]
            if event in _LINKS:
                found.append(_LINKS[event])
            elif event == _CONNECTED:
                self._guard.connected(int(message["value"]))

    def close(self) -> None:
        """Drop the connection and what is queued on it."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)
