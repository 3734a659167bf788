"""What the tests of marks share: certificates as an authority would make them, and a small video."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Issue = Callable[..., tuple[Path, Path, Path]]


def _name(text: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, text), x509.NameAttribute(NameOID.ORGANIZATION_NAME, text)]
    )


def _certificate(subject: str, issuer: str, public, signer, is_authority: bool, days: tuple[int, int], purpose):
    today = datetime.now(UTC)
    unused = "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only"
    usage = dict.fromkeys(unused.split(), False)
    usage |= {"digital_signature": not is_authority, "key_cert_sign": is_authority, "crl_sign": is_authority}
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(today + timedelta(days=days[0]))
        .not_valid_after(today + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture
def issue(tmp_path: Path) -> Issue:
    """Makes a signer's chain, its key and its authority's certificate, as PEM files."""
    kinds = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "rsa": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    }

    def make(
        name: str = "ann",
        kind: str = "p256",
        days: tuple[float, float] = (-2, 30),
        purpose=ExtendedKeyUsageOID.EMAIL_PROTECTION,
    ) -> tuple[Path, Path, Path]:
        root, own = ec.generate_private_key(ec.SECP256R1()), kinds[kind]()
        authority = _certificate("an authority", "an authority", root.public_key(), root, True, (-3, 400), None)
        leaf = _certificate(name, "an authority", own.public_key(), root, False, days, purpose)
        files = tuple(tmp_path / f"{name}-{what}.pem" for what in ("chain", "key", "authority"))
        pem = authority.public_bytes(Encoding.PEM)
        files[0].write_bytes(leaf.public_bytes(Encoding.PEM) + pem)
        files[1].write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        files[2].write_bytes(pem)
        return files

    return make


@pytest.fixture
def frames() -> np.ndarray:
    """Ten pictures of noise that is smooth in places, uint8 [10, 96, 128, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 190, size=(12, 16, 3))
    picture = np.kron(coarse, np.ones((8, 8, 1))) + rng.normal(scale=6, size=(96, 128, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)[None].repeat(10, 0)
