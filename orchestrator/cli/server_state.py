"""Asks a server what it is doing."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.cluster.private_files import read_private
from placement.errors import InputError, KeyFilesError
from placement.files.quote import quote

_PATIENCE_S = 10.0
_MOST_BYTES = 64_000_000
_MOST_KEY = 1000
_MOST_WORDS = 300


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server listens, and what it wants to be shown.

    Attributes:
        url: as the user gave it.
        key: "" for none; `key_file`: where it came from.
    """

    url: str
    is_tls: bool
    host: str
    port: int
    key: str = ""
    key_file: Path | None = None


def server_address(url: str, key_file: Path | None) -> ServerAddress:
    """Of what a user gave.

    Raises:
        InputError: it is no URL of a server.
        KeyFilesError: the file of the key cannot be used.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query:
        raise InputError(f"--url: expected one like http://127.0.0.1:8000, found {quote(url)}")
    is_tls = parts.scheme == "https"
    key = "" if key_file is None else _key(key_file)
    return ServerAddress(url.rstrip("/"), is_tls, host, port or (443 if is_tls else 80), key, key_file)


def fetch_state(server: ServerAddress) -> bytes:
    """The JSON of `GET /api/state`, unread.

    Raises:
        InputError: nobody answers there, or not with that.
    """
    kind = http.client.HTTPSConnection if server.is_tls else http.client.HTTPConnection
    connection = kind(server.host, server.port, timeout=_PATIENCE_S)
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    try:
        connection.request("GET", "/api/state", headers=headers)
        response = connection.getresponse()
        content = response.read(_MOST_BYTES + 1)
    except ConnectionRefusedError:
        raise InputError(
            f"{server.url}: nothing listens there; is the server up, and is that its --url?"
        ) from None
    except TimeoutError:
        raise InputError(f"{server.url}: no answer within {_PATIENCE_S:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        words = str(error) or type(error).__name__
        raise InputError(f"{server.url}: no answer of a server: {words[:_MOST_WORDS]}") from None
    finally:
        connection.close()
    if response.status == 401:
        raise InputError(f"{server.url}: {_wants_key(server)}")
    if response.status != 200:
        raise InputError(f"{server.url}: answered with status {response.status}{_words(content)}")
    if len(content) > _MOST_BYTES:
        raise InputError(f"{server.url}: its state has over {_MOST_BYTES:,} bytes, expected less")
    return content


def _wants_key(server: ServerAddress) -> str:
    if server.key_file is None:
        return "it wants a key; give a file that has one with --key-file"
    return f"it does not know the key of {server.key_file}"


def _words(content: bytes) -> str:
    """What the server says of its refusal, where it says something."""
    try:
        message = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f": {message[:_MOST_WORDS]}" if isinstance(message, str) else ""


def _key(path: Path) -> str:
    content = read_private(path)
    if content is None:
        raise KeyFilesError(f"--key-file {path}: there is no such file")
    text = content[: _MOST_KEY + 1].decode("ascii", "replace").strip()
    if not 0 < len(text) <= _MOST_KEY or not text.isascii() or not text.isprintable() or " " in text:
        raise KeyFilesError(f"--key-file {path}: expected one key and no more")
    return text
