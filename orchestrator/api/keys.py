"""API keys: made here, kept as hashes in a file of this user alone.

A key is 256 random bits, so nobody can find it by trying, however fast the hash. SHA-256 is therefore
enough; scrypt protects words that people choose, and here it would only let strangers keep the server busy
with wrong keys.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from orchestrator.api.limits import UNBOUNDED, Limits
from orchestrator.cluster.private_files import read_private, write_private
from placement.errors import KeyFilesError
from placement.files.quote import quote

MOST_KEYS = 1000
MOST_NAME = 64
_FIELDS = {"name", "sha256", "running", "per_minute"}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What the server keeps of a key: whose it is, its SHA-256 in hexadecimal, what it may do."""

    name: str
    sha256: str
    limits: Limits = UNBOUNDED


def make_key(name: str, limits: Limits = UNBOUNDED) -> tuple[str, ApiKey]:
    """A new key: the text for the client, which is kept nowhere, and what the server keeps."""
    text = f"potluck-{secrets.token_urlsafe(32)}"
    return text, ApiKey(name, _hash(text), limits)


def client_of(text: str, keys: Sequence[ApiKey]) -> str | None:
    """Whose key this is; None for nobody's. The time that it takes tells nothing of the keys."""
    shown, found = _hash(text), None
    for key in keys:
        if hmac.compare_digest(shown, key.sha256):
            found = key.name
    return found


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file that `write_keys` wrote.

    Raises:
        KeyFilesError: it is missing, open to other users, or not such a file.
    """
    content = read_private(path)
    if content is None:
        raise KeyFilesError(f"cannot read {path}: there is no such file; `potluck keys add` makes it")
    try:
        document = json.loads(content, object_pairs_hook=_only_once)
    except KeyError as error:
        raise KeyFilesError(f"{path}: {quote(error.args[0])} stands twice in one object: keep one") from None
    except (ValueError, RecursionError):
        raise KeyFilesError(f"{path}: expected JSON, found something else") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST_KEYS:
        raise KeyFilesError(f"{path}: expected an object with 1 to {MOST_KEYS:,} entries in `keys`")
    keys = tuple(_entry(entry, f"{path}: keys[{number}]") for number, entry in enumerate(entries))
    names = [key.name for key in keys]
    if len(set(names)) < len(names):
        raise KeyFilesError(f"{path}: two keys have one name, expected a name of its own for each")
    return keys


def _only_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Raise KeyError for a name that stands twice: of two limits nobody knows which one holds."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise KeyError(name)
        found[name] = value
    return found


def write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    """Put them into a file for this user alone.

    Raises:
        KeyFilesError: it cannot be written.
    """
    entries = []
    for key in keys:
        limits = {"running": key.limits.running, "per_minute": key.limits.per_minute}
        bounded = {name: value for name, value in limits.items() if value is not None}
        entries.append({"name": key.name, "sha256": key.sha256, **bounded})
    write_private(path, json.dumps({"keys": entries}, indent=1).encode() + b"\n")


def is_name(value: object) -> TypeGuard[str]:
    """Whether a key may have this name."""
    return isinstance(value, str) and 0 < len(value) <= MOST_NAME and value.isprintable()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _entry(entry: Any, where: str) -> ApiKey:
    if not isinstance(entry, dict) or not entry.keys() <= _FIELDS:
        raise KeyFilesError(f"{where}: expected an object with {', '.join(sorted(_FIELDS))} and no more")
    name, digest = entry.get("name"), entry.get("sha256")
    if not is_name(name):
        raise KeyFilesError(f"{where}.name: expected 1 to {MOST_NAME} characters, found {quote(name)}")
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise KeyFilesError(f"{where}.sha256: expected 64 hexadecimal digits in small letters")
    return ApiKey(name, digest, Limits(_bound(entry, "running", where), _bound(entry, "per_minute", where)))


def _bound(entry: dict[str, Any], field: str, where: str) -> int | None:
    value = entry.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1_000_000:
        raise KeyFilesError(
            f"{where}.{field}: expected 1 to 1,000,000, or nothing for no bound; found {quote(value)}"
        )
    return value
