"""CURVE keys in files that only their owner reads: one pair a node, and a list of who may connect."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import zmq
from zmq.utils import z85

from placement.errors import KeyFileError
from placement.files.quote import quote
from transport.keys import KeyPair

_KEY_CHARS = 40


def store_pair(path: Path, pair: KeyPair) -> None:
    """Write a pair, which `load_pair` reads; its folder is made if it is missing, readable by its owner only.

    Raises:
        KeyFileError: others may read the folder, or it cannot be written.
    """
    _store(path, f"public {pair.public.decode()}\nsecret {pair.secret.decode()}\n")


def load_pair(path: Path) -> KeyPair:
    """The pair of a file.

    Raises:
        KeyFileError: there is none, others may read it or its folder, or it does not hold a pair.
    """
    words = _load(path).split()
    if len(words) == 4 and words[0::2] == ["public", "secret"] and all(map(_is_key, words[1::2])):
        pair = KeyPair(words[1].encode(), words[3].encode())
        if zmq.curve_public(pair.secret) == pair.public:
            return pair
    raise KeyFileError(f"{path}: does not hold a public key and its secret: make new keys (potluck up)")


def store_allowed(path: Path, allowed: frozenset[bytes]) -> None:
    """Write the public keys that may connect, one a line; raises as `store_pair`."""
    _store(path, "".join(f"{key.decode()}\n" for key in sorted(allowed)))


def load_allowed(path: Path) -> frozenset[bytes]:
    """The public keys of a file.

    Raises:
        KeyFileError: there is none, others may read it or its folder, or a line is no key.
    """
    keys = _load(path).split()
    for number, key in enumerate(keys, 1):
        if not _is_key(key):
            raise KeyFileError(f"{path}: line {number} is {quote(key)}, expected a key of 40 characters")
    return frozenset(key.encode() for key in keys)


def _store(path: Path, text: str) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(path.parent, 0o700)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from None


def _load(path: Path) -> str:
    try:
        _check_private(path.parent, 0o700)
        _check_private(path, 0o600)
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise KeyFileError(f"{path}: is no text: make new keys (potluck up)") from None
    except FileNotFoundError:
        raise KeyFileError(f"{path}: no such key file: make the keys first (potluck up)") from None
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None


def _check_private(path: Path, mode: int) -> None:
    """Refuse what somebody else may read or write, or put there."""
    found = path.stat()
    user, found_mode = os.geteuid(), stat.S_IMODE(found.st_mode)
    if found.st_uid != user:
        raise KeyFileError(f"{path}: belongs to user {found.st_uid}, expected {user}: use keys of your own")
    if found_mode & ~mode:
        raise KeyFileError(
            f"{path}: has mode {found_mode:04o}, so others can read or change keys; expected {mode:04o}: "
            f"chmod {mode:o} it"
        )


def _is_key(text: str) -> bool:
    try:
        return len(text) == _KEY_CHARS and len(z85.decode(text.encode())) == 32
    except (ValueError, KeyError, OverflowError, UnicodeEncodeError):
        return False
