"""Certificates: Ray's kind of connection works with them, strangers fail, and they are renewed in time."""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from orchestrator.cluster.tls import (
    AUTHORITY_LIFE,
    CERTIFICATE_LIFE,
    RENEWED_BEFORE_END,
    TlsFiles,
    make_tls,
    renewed,
)

NOW = datetime.now(UTC)
ADDRESSES = ("192.168.1.10", "192.168.1.11")


def context(tls: TlsFiles, folder: Path, side: int, trusted: TlsFiles | None = None) -> ssl.SSLContext:
    folder.mkdir(exist_ok=True)
    (folder / "cert").write_bytes(tls.certificate)
    (folder / "key").write_bytes(tls.key)
    made = ssl.SSLContext(side)
    made.load_cert_chain(folder / "cert", folder / "key")
    made.load_verify_locations(cadata=(trusted or tls).authority.decode())
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def speak(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bytes:
    """What a client that checks `name` hears from a server that checks the client."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.settimeout(10)

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as secure:
                secure.sendall(b"heard")
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as secure:
            return secure.recv(16)
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", [*ADDRESSES, "127.0.0.1", "localhost"])
def test_a_box_is_believed_at_each_address_of_the_cluster(name: str, tmp_path: Path) -> None:
    tls = make_tls("home", ADDRESSES, NOW)
    server = context(tls, tmp_path / "server", ssl.PROTOCOL_TLS_SERVER)
    client = context(tls, tmp_path / "client", ssl.PROTOCOL_TLS_CLIENT)
    assert speak(server, client, name) == b"heard"


def test_another_address_is_not_believed(tmp_path: Path) -> None:
    tls = make_tls("home", ADDRESSES, NOW)
    server = context(tls, tmp_path / "server", ssl.PROTOCOL_TLS_SERVER)
    client = context(tls, tmp_path / "client", ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLCertVerificationError):
        speak(server, client, "192.168.1.12")


def test_a_stranger_is_heard_by_neither_side(tmp_path: Path) -> None:
    tls, other = make_tls("home", ADDRESSES, NOW), make_tls("home", ADDRESSES, NOW)
    server = context(tls, tmp_path / "server", ssl.PROTOCOL_TLS_SERVER)
    # One that knows our authority's certificate, which is no secret, but has no certificate of it.
    stranger = context(other, tmp_path / "client", ssl.PROTOCOL_TLS_CLIENT, trusted=tls)
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on when the server's alert arrives
        assert speak(server, stranger, ADDRESSES[0]) == b"heard"
    posing = context(other, tmp_path / "server", ssl.PROTOCOL_TLS_SERVER, trusted=tls)
    client = context(tls, tmp_path / "client", ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLCertVerificationError):
        speak(posing, client, ADDRESSES[0])


def test_what_does_is_kept() -> None:
    tls = make_tls("home", ADDRESSES, NOW)
    # A certificate's dates are whole seconds.
    almost = NOW + CERTIFICATE_LIFE - RENEWED_BEFORE_END - timedelta(seconds=2)
    assert renewed(tls, "home", ADDRESSES[::-1], almost) == tls


@pytest.mark.parametrize(
    ("addresses", "later"),
    [
        (ADDRESSES, CERTIFICATE_LIFE - RENEWED_BEFORE_END + timedelta(seconds=2)),
        ((*ADDRESSES, "192.168.1.12"), timedelta()),
        (ADDRESSES[:1], timedelta()),
    ],
)
def test_a_certificate_is_renewed_by_the_same_authority(addresses: tuple[str, ...], later: timedelta) -> None:
    tls = make_tls("home", ADDRESSES, NOW)
    new = renewed(tls, "home", addresses, NOW + later)
    assert new.certificate != tls.certificate
    assert (new.authority, new.authority_key) == (tls.authority, tls.authority_key)
    assert renewed(new, "home", addresses, NOW + later) == new
    certificate = x509.load_pem_x509_certificate(new.certificate)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(tls.authority))
    assert certificate.not_valid_after_utc > NOW + later + CERTIFICATE_LIFE - timedelta(minutes=1)


def test_an_authority_ends_with_enough_time_or_is_replaced() -> None:
    tls = make_tls("home", ADDRESSES, NOW)
    late = NOW + AUTHORITY_LIFE - CERTIFICATE_LIFE + timedelta(seconds=2)
    new = renewed(tls, "home", ADDRESSES, late)
    assert new.authority != tls.authority
    assert renewed(new, "home", ADDRESSES, late) == new


@pytest.mark.parametrize("part", ["authority", "authority_key", "certificate", "key"])
@pytest.mark.parametrize("other", [True, False])
def test_files_that_do_not_belong_together_are_made_anew(part: str, other: bool) -> None:
    tls = make_tls("home", ADDRESSES, NOW)
    wrong = getattr(make_tls("home", ADDRESSES, NOW), part) if other else b"-----BEGIN NOTHING-----"
    broken = replace(tls, **{part: wrong})
    new = renewed(broken, "home", ADDRESSES, NOW)
    assert new != broken
    assert renewed(new, "home", ADDRESSES, NOW) == new
