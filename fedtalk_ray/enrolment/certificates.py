"""TLS certificates of a federation's own authority: who answers at the coordinator's address is who it named."""

import ipaddress
import re
import ssl
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedtalk_ray.enrolment.membership import EnrolmentError
from fedtalk_ray.privacy.keys import SigningKey

AUTHORITY_DAYS, SERVER_DAYS = 3650, 398
"""How long certificates hold."""

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")

_EARLIER = timedelta(days=2)
"""Certificates hold from so long before they are made: other machines' clocks go differently."""


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _noon(day: date) -> datetime:
    return datetime.combine(day, time(12), UTC)


def _builder(subject: str, issuer: str, public: object, days: int) -> x509.CertificateBuilder:
    today = date.today()
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(public)  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(_noon(today) - _EARLIER)
        .not_valid_after(_noon(today) + timedelta(days=days))
    )


AUTHORITY = "fedtalk authority"


def authority_certificate(key: SigningKey) -> bytes:
    """The authority's own certificate, PEM. key: the one that it also signs lists of members with."""
    private = Ed25519PrivateKey.from_private_bytes(key.secret)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    made = (
        _builder(AUTHORITY, AUTHORITY, private.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, None)
    )
    return made.public_bytes(Encoding.PEM)


def server_certificate(authority: SigningKey, hosts: Sequence[str]) -> tuple[bytes, bytes]:
    """A new key and its certificate for a coordinator at these host names or addresses, both PEM."""
    private = ec.generate_private_key(ec.SECP256R1())
    signing = Ed25519PrivateKey.from_private_bytes(authority.secret)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    made = (
        _builder("fedtalk coordinator", AUTHORITY, private.public_key(), SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(signing, None)
    )
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, made.public_bytes(Encoding.PEM)


def _alternative(host: str) -> x509.GeneralName:
    """What a certificate says of a host. Raises `EnrolmentError`."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise EnrolmentError(f"--host {host!r} is no host name or address; give it alone, without https:// and port")
    return x509.DNSName(host)


def read_authority(pem: bytes) -> tuple[bytes, bytes]:
    """An authority's certificate: its DER bytes, which a code names, and its public key, 32 bytes.

    Raises `EnrolmentError`.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = certificate.public_key()
        certificate.verify_directly_issued_by(certificate)
    except Exception as error:  # cryptography raises several kinds, and another one for a bad signature
        raise EnrolmentError(f"this is no authority's certificate ({type(error).__name__}: {error})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise EnrolmentError("the authority's certificate has no Ed25519 key")
    return certificate.public_bytes(Encoding.DER), key.public_bytes_raw()


def check_server_files(certificate: Path, key: Path) -> None:
    """Raises `EnrolmentError` for a coordinator's certificate or key that is damaged or has run out."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        load_pem_private_key(key.read_bytes(), None)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ValueError, TypeError, ssl.SSLError) as error:
        raise EnrolmentError(f"{certificate} and {key} are no certificate with its key ({error})") from error
    if found.not_valid_after_utc < _noon(date.today()):
        raise EnrolmentError(
            f"{certificate} ran out on {found.not_valid_after_utc:%Y-%m-%d}; the authority makes another one "
            "(`fedtalk authority host`)"
        )
