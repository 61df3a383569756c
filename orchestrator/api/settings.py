"""How a server listens, and what bounds its clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.api.addresses import is_loopback
from orchestrator.api.bodies import MOST_BYTES
from orchestrator.api.keys import ApiKey
from placement.errors import InputError, KeysRequired
from placement.files.quote import quote


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Of one server.

    Attributes:
        host: an address to listen on; only loopback does without keys.
        port: 0 for one that the system chooses.
        keys: who may ask; empty for everybody, which on loopback is this machine.
        tls_certificate, tls_key: PEM files, both or none.
        body_s: a request must be there within so long; `headers_s`, its first lines.
        quiet_s: in a stream, something is sent at least so often.
        write_s: a client that reads nothing for so long is taken for gone.
        grace_s: what answers under way get to finish when the server stops.
        keep_alive_s: a connection without a request is closed after so long.
        most_connections: beyond that, the one that has been idle longest is closed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[ApiKey, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    most_body_bytes: int = MOST_BYTES
    headers_s: float = 10.0
    body_s: float = 60.0
    quiet_s: float = 10.0
    write_s: float = 60.0
    grace_s: float = 30.0
    keep_alive_s: float = 30.0
    most_connections: int = 4096

    def __post_init__(self) -> None:
        """Raises KeysRequired, or InputError for another setting that cannot be used."""
        address, colon, port = self.host.rpartition(":")
        if "/" in self.host or (colon and port.isdecimal() and ":" not in address):
            advice = f"; the port is --port {port}" if port.isdecimal() else ""
            raise InputError(
                f"--host {self.host}: expected an address or a name alone, such as 127.0.0.1{advice}"
            )
        if not is_loopback(self.host) and not self.keys:
            raise KeysRequired(
                f"--host {self.host}: other machines reach it, so that API keys are needed; "
                "make some (`potluck keys add FILE NAME`), or listen on 127.0.0.1"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "--tls-key" if self.tls_key is None else "--tls-cert"
            raise InputError(f"{missing} is missing: TLS needs both a certificate and its key")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port: expected 0 to 65535, found {quote(self.port)}")
