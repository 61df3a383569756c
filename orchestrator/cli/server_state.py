"""Asks a server what it is doing."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path

from orchestrator.chat.address import Address, read_url
from orchestrator.chat.trust import may_want_tls, open_connection, tls_trouble
from orchestrator.cluster.private_files import read_private
from placement.errors import InputError, KeyFilesError

_PATIENCE_S = 10.0
_MOST_BYTES = 64_000_000
_MOST_KEY = 1000
_MOST_WORDS = 300


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server listens, and what it wants to be shown.

    Attributes:
        key: "" for none; `key_file`: where it came from.
    """

    address: Address
    key: str = ""
    key_file: Path | None = None

    @property
    def url(self) -> str:
        """The server's, without what stands behind its port."""
        return str(self.address)


def server_address(url: str, key_file: Path | None) -> ServerAddress:
    """Of what a user gave.

    Raises:
        InputError: it is no URL of a server.
        KeyFilesError: the file of the key cannot be used.
    """
    address = read_url(url)
    return ServerAddress(address, "" if key_file is None else _key(key_file), key_file)


def fetch_state(server: ServerAddress) -> bytes:
    """The JSON of `GET /api/state`, unread.

    Raises:
        InputError: nobody answers there, or not with that.
    """
    connection = open_connection(server.address, _PATIENCE_S)
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    try:
        connection.request("GET", f"{server.address.path}/api/state", headers=headers)
        response = connection.getresponse()
        content = response.read(_MOST_BYTES + 1)
    except ConnectionRefusedError:
        raise InputError(
            f"{server.url}: nothing listens there; is the server up, and is that its --url?"
        ) from None
    except TimeoutError:
        raise InputError(f"{server.url}: no answer within {_PATIENCE_S:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{server.url}: {_trouble(server, error)}") from None
    finally:
        connection.close()
    if response.status == 401:
        raise InputError(f"{server.url}: {_wants_key(server)}")
    if response.status != 200:
        raise InputError(f"{server.url}: answered with status {response.status}{_words(content)}")
    if len(content) > _MOST_BYTES:
        raise InputError(f"{server.url}: its state has over {_MOST_BYTES:,} bytes, expected less")
    return content


def _trouble(server: ServerAddress, error: Exception) -> str:
    if (trouble := tls_trouble(error)) is not None:
        return trouble
    words = f"no answer of a server: {(str(error) or type(error).__name__)[:_MOST_WORDS]}"
    return f"{words}; try https:// in --url" if may_want_tls(server.address, error) else words


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
