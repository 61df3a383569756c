"""ZMTP 3 by hand, with and without CURVE: a peer that can do what libzmq would not."""

from __future__ import annotations

import ctypes
import socket
import struct
from pathlib import Path

import zmq
from zmq.utils import z85

from transport.keys import HeadKeys

_METADATA = b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"


def _sodium() -> ctypes.CDLL:
    """The library that pyzmq brings along."""
    (path,) = (Path(zmq.__file__).parents[1] / "pyzmq.libs").glob("libsodium*")
    return ctypes.CDLL(str(path))


class RawPeer:
    """A connection whose handshake is done; `send` writes frames that belong to one message, or do not."""

    def __init__(self, endpoint: str, keys: HeadKeys | None = None, timeout_s: float = 20.0) -> None:
        scheme, _, address = endpoint.partition("://")
        if scheme == "ipc":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.create_connection((host, int(port)))
        self.socket.settimeout(timeout_s)
        mechanism = b"NULL" if keys is None else b"CURVE"
        self.socket.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32))
        self._receive(64)
        self._box: _Box | None = None
        if keys is None:
            self._command(b"\x05READY" + _METADATA)
            self._read_command()
        else:
            self._greet(keys)

    def send(self, payload: bytes, *, more: bool) -> None:
        """One frame of a message."""
        self.socket.sendall(self.frame(payload, more=more))

    def frame(self, payload: bytes, *, more: bool) -> bytes:
        """Its bytes on the wire; with keys each is good for once."""
        if self._box is None:
            return _framed(payload, int(more))
        sealed = self._box.seal(b"CurveZMQMESSAGEC", bytes([more]) + payload)
        return _framed(b"\x07MESSAGE" + sealed, 0)

    def close(self) -> None:
        self.socket.close()

    def _greet(self, keys: HeadKeys) -> None:
        sodium = _sodium()
        server, own = z85.decode(keys.worker_public), z85.decode(keys.own.public)
        own_secret = z85.decode(keys.own.secret)
        public, secret = ctypes.create_string_buffer(32), ctypes.create_string_buffer(32)
        sodium.crypto_box_keypair(public, secret)
        box = _Box(sodium, server, secret.raw)
        self._command(
            b"\x05HELLO\x01\x00" + bytes(72) + public.raw + box.seal(b"CurveZMQHELLO---", bytes(64))
        )
        welcome = self._read_command()[8:]
        opened = box.open(b"WELCOME-" + welcome[:16], welcome[16:])
        short_lived, cookie = opened[:32], opened[32:]
        vouch_nonce = bytes(16)
        vouch = _Box(sodium, short_lived, own_secret).sealed(b"VOUCH---" + vouch_nonce, public.raw + server)
        box = _Box(sodium, short_lived, secret.raw, nonce=box.nonce)
        secrets = own + vouch_nonce + vouch + _METADATA
        self._command(b"\x08INITIATE" + cookie + box.seal(b"CurveZMQINITIATE", secrets))
        assert self._read_command().startswith(b"\x05READY")
        self._box = box

    def _command(self, body: bytes) -> None:
        self.socket.sendall(_framed(body, 0x04))

    def _read_command(self) -> bytes:
        flags = self._receive(1)[0]
        size = struct.unpack(">Q", self._receive(8))[0] if flags & 0x02 else self._receive(1)[0]
        return self._receive(size)

    def _receive(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            more = self.socket.recv(size - len(received))
            assert more, "the worker hung up"
            received += more
        return received


class _Box:
    """Authenticated encryption between two keys, with nonces that count up."""

    def __init__(self, sodium: ctypes.CDLL, public: bytes, secret: bytes, nonce: int = 0) -> None:
        self._sodium = sodium
        self._shared = ctypes.create_string_buffer(32)
        sodium.crypto_box_beforenm(self._shared, public, secret)
        self.nonce = nonce

    def seal(self, prefix: bytes, plain: bytes) -> bytes:
        self.nonce += 1
        short = struct.pack(">Q", self.nonce)
        return short + self.sealed(prefix + short, plain)

    def sealed(self, nonce: bytes, plain: bytes) -> bytes:
        out = ctypes.create_string_buffer(len(plain) + 16)
        size = ctypes.c_ulonglong(len(plain))
        self._sodium.crypto_box_easy_afternm(out, plain, size, nonce, self._shared)
        return out.raw

    def open(self, nonce: bytes, sealed: bytes) -> bytes:
        out = ctypes.create_string_buffer(len(sealed) - 16)
        size = ctypes.c_ulonglong(len(sealed))
        failed = self._sodium.crypto_box_open_easy_afternm(out, sealed, size, nonce, self._shared)
        assert not failed
        return out.raw


def _framed(body: bytes, flags: int) -> bytes:
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 0x02]) + struct.pack(">Q", len(body)) + body
