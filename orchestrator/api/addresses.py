"""Who may speak to a server, by the names that a browser cannot forge: Host and Origin."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen on."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_loopback(host_header: str) -> bool:
    """Whether a request's Host is this machine's own name for itself.

    A page whose name was rebound to 127.0.0.1 still sends its own name here.
    """
    parts = _host_and_port(f"//{host_header}")
    return parts is not None and is_loopback(parts[0])


def is_same_origin(origin: str, host_header: str, scheme: str) -> bool:
    """Whether a page of `origin` was served by the host that its request goes to.

    A proxy may speak TLS for us. Its port is not in the Host then, and not in the origin.
    """
    theirs = _host_and_port(origin)
    ours = (_host_and_port(f"{each}://{host_header}") for each in (scheme, "https"))
    return theirs is not None and theirs in ours


def _host_and_port(url: str) -> tuple[str, int | None] | None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.username is not None or parts.path not in ("", "/"):
        return None
    return host, _DEFAULT_PORTS.get(parts.scheme) if port is None else port
