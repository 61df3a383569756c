"""A cluster's own certificate authority, and the one certificate that all of Ray's sockets in it show.

Ray checks both ends of a connection, so a process without this certificate can neither listen to nor speak
with Ray. The authority's key never leaves the machine that made it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=3650)
CERTIFICATE_LIFE = timedelta(days=365)
RENEWED_BEFORE_END = timedelta(days=30)
# Clocks of boxes may be behind; a certificate from the future would be refused there.
_CLOCK_MARGIN = timedelta(days=1)
_LOOPBACK = ("127.0.0.1",)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """All of them in PEM; `authority_key` stays where it was made."""

    authority_key: bytes
    authority: bytes
    key: bytes
    certificate: bytes


def make_tls(cluster: str, addresses: Collection[str], now: datetime) -> TlsFiles:
    """An authority and a certificate for `addresses` (IPv4), valid from a day before `now`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Potluck cluster {cluster}"[:64])])
    authority = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_MARGIN)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _with_certificate(_pem_key(key), _pem(authority), addresses, now)


def renewed(tls: TlsFiles, cluster: str, addresses: Collection[str], now: datetime) -> TlsFiles:
    """The same where it still does; with a new certificate where that ends soon or has other addresses.

    An authority that ends within a certificate's life, or whose files do not match, is replaced too.
    """
    try:
        authority = x509.load_pem_x509_certificate(tls.authority)
        key = serialization.load_pem_private_key(tls.authority_key, None)
        is_whole = isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == authority.public_key()
        if not is_whole or not _lasts(authority, now, CERTIFICATE_LIFE):
            return make_tls(cluster, addresses, now)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return make_tls(cluster, addresses, now)
    if _does(tls, authority, addresses, now):
        return tls
    return _with_certificate(tls.authority_key, tls.authority, addresses, now)


def _does(tls: TlsFiles, authority: x509.Certificate, addresses: Collection[str], now: datetime) -> bool:
    """Whether a certificate is whole, of this authority, for all these addresses, and lasts."""
    try:
        certificate = x509.load_pem_x509_certificate(tls.certificate)
        key = serialization.load_pem_private_key(tls.key, None)
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False
    certified = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return (
        certificate.public_key() == key.public_key()
        and certified == {*addresses, *_LOOPBACK}
        and _lasts(certificate, now, RENEWED_BEFORE_END)
    )


def _lasts(certificate: x509.Certificate, now: datetime, span: timedelta) -> bool:
    return certificate.not_valid_before_utc <= now and now + span <= certificate.not_valid_after_utc


def _with_certificate(
    authority_key: bytes, authority_pem: bytes, addresses: Collection[str], now: datetime
) -> TlsFiles:
    authority = x509.load_pem_x509_certificate(authority_pem)
    signing = serialization.load_pem_private_key(authority_key, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in sorted({*_LOOPBACK, *addresses})]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Potluck box")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_MARGIN)
        .not_valid_after(now + CERTIFICATE_LIFE)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False
        )
        .sign(signing, hashes.SHA256())
    )
    return TlsFiles(authority_key, authority_pem, _pem_key(key), _pem(certificate))


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        key_encipherment=False,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
