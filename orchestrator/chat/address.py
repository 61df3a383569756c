"""Where a server is, by its URL."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from orchestrator.api.addresses import is_loopback
from placement.errors import InputError
from placement.files.quote import quote

_PORTS = {"http": 80, "https": 443}
_EXPECTED = "expected one such as http://127.0.0.1:8000, as `potluck serve` prints it"


@dataclass(frozen=True, slots=True)
class Address:
    """Of a server. `path`: what stands before `/v1`, "" where nothing does."""

    host: str
    port: int
    is_tls: bool
    path: str = ""

    @property
    def is_open_to_listeners(self) -> bool:
        """Whether others on the network could read what is sent there."""
        return not self.is_tls and not is_loopback(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}{self.path}"


def read_url(url: str) -> Address:
    """The address in a URL; a `/v1` at its end, which other clients want, is dropped.

    Raises:
        InputError: it is no URL of a server.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InputError(f"--url {quote(url)}: {_EXPECTED}") from None
    if parts.scheme not in _PORTS or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError(f"--url {quote(url)}: {_EXPECTED}")
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError(f"--url {quote(url)}: {_EXPECTED}; a key goes into a file, see --key-file")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return Address(host, port or _PORTS[parts.scheme], parts.scheme == "https", path)
