"""Where a server listens: its socket, its TLS files, and the address that people are told."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from orchestrator.api.settings import ApiSettings
from placement.errors import InputError

_BACKLOG = 2048
_ANY = ("0.0.0.0", "::")
# Nobody answers there. No packet is sent: it is only asked which way one would go.
_SOMEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def check_listening(settings: ApiSettings) -> None:
    """Find out whether a server can listen so, and close the port again.

    Raises:
        InputError: the address cannot be listened on, or the TLS files cannot be used.
    """
    check_tls(settings)
    listen(settings).close()


def check_tls(settings: ApiSettings) -> None:
    """
    Raises:
        InputError: the TLS files cannot be used; it says which one, and why.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        return
    for option, path in (("--tls-cert", certificate), ("--tls-key", key)):
        _check_readable(option, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(certificate)
    except ssl.SSLError:
        raise InputError(f"--tls-cert {certificate}: expected a PEM certificate") from None
    try:
        # Without an answer, OpenSSL would ask the terminal for the password of a key that has one.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InputError(f"--tls-key: {key} is not the key of {certificate}") from None
        raise InputError(f"--tls-key {key}: expected a PEM key without a password") from None


def listen(settings: ApiSettings) -> socket.socket:
    """The socket that a server accepts on.

    Raises:
        InputError: the address is taken, or none of this machine, or no such name exists.
    """
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small packets at once only where a socket says that it is TCP's. Without that, each
    # answer waits 40 ms for the client's acknowledgement of its first lines.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except socket.gaierror:
        listener.close()
        raise InputError(f"--host {host}: no such name or address; expected one of this machine's") from None
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another with --host or --port"
        ) from None
    return listener


def url_of(settings: ApiSettings, listener: socket.socket) -> str:
    """How a client names the server: by an address of this machine, where it listens on all of them."""
    host = _address(listener.family) if settings.host in _ANY else settings.host
    shown = f"[{host}]" if ":" in host else host
    scheme = "http" if settings.tls_key is None else "https"
    return f"{scheme}://{shown}:{listener.getsockname()[1]}"


def _check_readable(option: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise InputError(f"{option} {path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be read: {error.strerror}") from None


def _address(family: int) -> str:
    """By which other machines reach this one; loopback's where there is no way to others."""
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((_SOMEWHERE[socket.AddressFamily(family)], 9))
        except OSError:
            return "::1" if family == socket.AF_INET6 else "127.0.0.1"
        return str(asking.getsockname()[0])
