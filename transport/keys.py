"""CURVE keys: who a process is, whom it lets in, and which endpoints need them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

import zmq
from zmq.auth.thread import ThreadAuthenticator

from placement.errors import KeysRequired

ZAP_DOMAIN = "potluck"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, each half 40 characters of Z85."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def make(cls) -> KeyPair:
        """A fresh pair. Make all of them before other threads use ZeroMQ (libzmq issue 4241)."""
        return cls(*zmq.curve_keypair())


@dataclass(frozen=True, slots=True)
class WorkerKeys:
    """What a worker needs: its own pair, and the public keys that may connect."""

    own: KeyPair
    allowed: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class HeadKeys:
    """What the head needs to reach one worker: its own pair, and that worker's public key."""

    own: KeyPair
    worker_public: bytes


def is_private(endpoint: str) -> bool:
    """Whether only this machine can reach an endpoint: inproc, ipc, and tcp on a loopback address.

    Host names other than localhost, interface names and `*` count as public: what they stand for can change.
    """
    scheme, _, address = endpoint.partition("://")
    if scheme in ("inproc", "ipc"):
        return True
    host = address.rpartition(":")[0].strip("[]") if scheme == "tcp" else ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_keys(endpoint: str, keys: WorkerKeys | None) -> None:
    """Refuse to bind an endpoint that other machines can reach without keys.

    Raises:
        KeysRequired: it has none.
    """
    if keys is None and not is_private(endpoint):
        raise KeysRequired(
            f"{endpoint}: other machines can reach this address and the worker has no keys: "
            "start it through a cluster, which makes them, or bind 127.0.0.1"
        )


def secure_server(socket: zmq.Socket[bytes], keys: WorkerKeys) -> ThreadAuthenticator:
    """Make an unbound socket a CURVE server that lets in `keys.allowed` and nobody else.

    The authenticator serves the socket's whole context and is to be stopped after the socket is closed.
    Without it a CURVE server accepts every client key.
    """
    authenticator = ThreadAuthenticator(socket.context)
    authenticator.configure_curve_callback(ZAP_DOMAIN, credentials_provider=_Allowed(keys.allowed))
    authenticator.start()
    socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN.encode())
    # Without this, libzmq would let every key in if the authenticator stopped.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
    return authenticator


def secure_client(socket: zmq.Socket[bytes], keys: HeadKeys) -> None:
    """Make an unconnected socket a CURVE client that talks to the holder of `keys.worker_public` only."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.worker_public)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)


class _Allowed:
    """The credentials provider pyzmq asks: it passes keys in Z85."""

    def __init__(self, public: frozenset[bytes]) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        return key in self._public
