"""A cluster's secrets: made on the machine that starts it, and carried to its boxes over ssh.

In the state folder (0700) of the machine that starts the cluster:

    keys/NODE.key                         each node's CURVE pair
    token                                 Ray's
    tls/ca.key, ca.crt, node.key, node.crt   the authority, and the one certificate of all boxes

A box gets its own pair, the public keys that may speak to it, the token and the certificate: never another
box's pair, nor the authority's key.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import zmq

from orchestrator.cluster.private_files import (
    check_private,
    locked,
    make_private_folder,
    read_private,
    write_private,
)
from orchestrator.cluster.tls import TlsFiles, make_tls, renewed
from placement.errors import KeyFilesError
from transport.keys import KeyPair

KEYS, TLS, TOKEN, ALLOWED = "keys", "tls", "token", "allowed"
CA_KEY, CA, NODE_KEY, NODE = "ca.key", "ca.crt", "node.key", "node.crt"
_TOKEN_BYTES = 32
_Z85_KEY = 40


@dataclass(frozen=True, slots=True)
class ClusterKeys:
    """All secrets of a cluster. `pairs`: by node."""

    pairs: Mapping[str, KeyPair]
    token: str = field(repr=False)
    tls: TlsFiles = field(repr=False)

    def files_of(self, node: str, allowed: Collection[str]) -> dict[str, bytes]:
        """What a box gets: path below its folder -> content.

        Args:
            allowed: nodes whose processes may speak to this one's: the head.
        """
        return {
            f"{KEYS}/{node}.key": _pair_text(self.pairs[node]),
            f"{KEYS}/{ALLOWED}": b"".join(self.pairs[name].public + b"\n" for name in sorted(allowed)),
            TOKEN: self.token.encode(),
            f"{TLS}/{CA}": self.tls.authority,
            f"{TLS}/{NODE}": self.tls.certificate,
            f"{TLS}/{NODE_KEY}": self.tls.key,
        }


@dataclass(frozen=True, slots=True)
class BoxKeys:
    """What a box has of them: its own pair, and the public keys it lets in."""

    own: KeyPair
    allowed: frozenset[bytes]


def ensure_keys(
    folder: Path, cluster: str, addresses: Mapping[str, str], now: datetime | None = None
) -> ClusterKeys:
    """Read a cluster's secrets; make those that are missing, and renew the certificate where it is time.

    Args:
        folder: the cluster's state folder; made where it is missing.
        addresses: of its nodes, by name.
        now: in UTC; the clock's where it is left out.

    Raises:
        KeyFilesError: other users may read one of the files, or it is damaged.
    """
    now = now or datetime.now(UTC)
    make_private_folder(folder.parent)
    # Nobody should add keys to a repository by mistake.
    ignore = folder.parent / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    for path in (folder, folder / KEYS, folder / TLS):
        make_private_folder(path)
    with locked(folder):
        pairs = {name: _ensure_pair(folder / KEYS / f"{name}.key") for name in addresses}
        return ClusterKeys(pairs, _ensure_token(folder / TOKEN), _ensure_tls(folder, cluster, addresses, now))


def read_box_keys(folder: Path, node: str) -> BoxKeys:
    """What was carried to this box.

    Raises:
        KeyFilesError: it is missing, damaged, or open to other users.
    """
    check_private(folder)
    pair = read_private(folder / KEYS / f"{node}.key")
    allowed = read_private(folder / KEYS / ALLOWED)
    if pair is None or allowed is None:
        raise KeyFilesError(f"{folder / KEYS}: no keys of node {node!r} here: run `potluck up` on the head")
    own = _pair(pair, folder / KEYS / f"{node}.key")
    keys = allowed.split()
    if any(len(key) != _Z85_KEY for key in keys):
        raise KeyFilesError(f"{folder / KEYS / ALLOWED}: expected public keys of 40 characters, a line each")
    return BoxKeys(own, frozenset(keys))


def read_pair(folder: Path, node: str) -> KeyPair:
    """The pair of a node, from the state folder of the machine that starts the cluster.

    Raises:
        KeyFilesError: it is missing, damaged, or open to other users.
    """
    path = folder / KEYS / f"{node}.key"
    content = read_private(path)
    if content is None:
        raise KeyFilesError(f"{path}: expected the pair of node {node!r}, found none: run `potluck up`")
    return _pair(content, path)


def remove_keys(folder: Path) -> None:
    """Remove a cluster's keys, token and certificates from this machine; what else lies there stays."""
    if not folder.is_dir():
        return
    with locked(folder):
        for name in (KEYS, TLS):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / TOKEN).unlink(missing_ok=True)


def _ensure_pair(path: Path) -> KeyPair:
    content = read_private(path)
    if content is not None:
        return _pair(content, path)
    pair = KeyPair.make()
    write_private(path, _pair_text(pair))
    return pair


def _pair_text(pair: KeyPair) -> bytes:
    return pair.public + b"\n" + pair.secret + b"\n"


def _pair(content: bytes, path: Path) -> KeyPair:
    halves = content.split()
    if [len(half) for half in halves] != [_Z85_KEY] * 2 or not _is_pair(*halves):
        raise KeyFilesError(
            f"{path}: expected a CURVE pair, two lines of 40 characters: remove it, and `potluck up` makes "
            "another"
        )
    return KeyPair(*halves)


def _is_pair(public: bytes, secret: bytes) -> bool:
    try:
        return zmq.curve_public(secret) == public
    except (zmq.ZMQError, ValueError):
        return False


def _ensure_token(path: Path) -> str:
    content = read_private(path)
    if content is not None:
        token = content.decode(errors="replace").strip()
        if len(token) < _TOKEN_BYTES or not token.isalnum():
            raise KeyFilesError(
                f"{path}: expected Ray's token of {2 * _TOKEN_BYTES} hexadecimal digits: remove it, and "
                "`potluck up` makes another"
            )
        return token
    token = secrets.token_hex(_TOKEN_BYTES)
    write_private(path, token.encode())
    return token


def _ensure_tls(folder: Path, cluster: str, addresses: Mapping[str, str], now: datetime) -> TlsFiles:
    names = (CA_KEY, CA, NODE_KEY, NODE)
    found = [read_private(folder / TLS / name) for name in names]
    values = addresses.values()
    if None in found:
        tls = make_tls(cluster, values, now)
    else:
        tls = renewed(TlsFiles(*(content or b"" for content in found)), cluster, values, now)
    for name, before, content in zip(
        names, found, (tls.authority_key, tls.authority, tls.key, tls.certificate), strict=True
    ):
        if content != before:
            write_private(folder / TLS / name, content)
    return tls
