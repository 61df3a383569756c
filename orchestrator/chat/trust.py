"""Connections to a server: whom to trust, and what to do where TLS fails."""

from __future__ import annotations

import http.client
import os
import ssl

from orchestrator.chat.address import Address
from placement.errors import InputError
from placement.files.quote import quote

_VARIABLE = "SSL_CERT_FILE"


def open_connection(address: Address, patience_s: float) -> http.client.HTTPConnection:
    """One that is not connected yet. It trusts this machine's authorities, or SSL_CERT_FILE's in their place.

    Raises:
        InputError: that file is not there. Python would trust nobody then, and not say why.
    """
    if not address.is_tls:
        return http.client.HTTPConnection(address.host, address.port, timeout=patience_s)
    path = os.environ.get(_VARIABLE)
    if path is not None and not os.path.exists(path):
        raise InputError(f"{_VARIABLE}={quote(path)}: there is no such file; correct or unset it")
    context = ssl.create_default_context()
    return http.client.HTTPSConnection(address.host, address.port, timeout=patience_s, context=context)


def tls_trouble(error: Exception) -> str | None:
    """What to do about an error of TLS, None for another one."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({error.verify_message}): name the file of the authority that "
            "made it in SSL_CERT_FILE"
        )
    if isinstance(error, ssl.SSLError):
        return "no TLS is spoken there: try http:// in --url"
    return None


def may_want_tls(address: Address, error: Exception) -> bool:
    """Whether the other side hung up on plain HTTP without a word, as one does that speaks TLS alone."""
    return not address.is_tls and isinstance(error, ConnectionResetError | BrokenPipeError)
