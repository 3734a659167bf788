"""What signs content credentials: a certificate that somebody gives, or one made here at first use, for trials.

A trial certificate says that a file was signed on this machine and is unchanged; it says nothing of who that is.
"""

import os
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedtalk_ray.errors import UserError
from fedtalk_ray.outputs import alone, write_synced, writing

TRIAL = "fedtalk trial certificate"
TRIAL_DAYS, RENEWED_BEFORE = 3650, 1825
"""How long a trial certificate holds; another is made in its second half, so that every video's holds for years."""

_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


class CertificateError(UserError):
    """A certificate or its key cannot be used."""


@dataclass(frozen=True)
class Signing:
    """chain: certificates, PEM, the signer's own first. key: PEM. algorithm: C2PA's name. where: for messages."""

    chain: bytes
    key: bytes = field(repr=False)
    algorithm: str
    where: str


def trial_folder() -> Path:
    """Where a user's trial certificate lies, for its owner alone: below FEDTALK_HOME, or below ~/.config/fedtalk."""
    if home := os.environ.get("FEDTALK_HOME"):
        return Path(home) / "marking"
    try:
        return Path.home() / ".config" / "fedtalk" / "marking"
    except RuntimeError as error:
        raise CertificateError("there is no home folder for a trial certificate; name one in FEDTALK_HOME") from error


def trial_authorities() -> tuple[bytes, ...]:
    """The certificates that this machine's own trial certificates lead to, PEM; none where none can be read."""
    try:
        return (authority_of(trial_folder() / "authority.pem"),)
    except CertificateError:
        return ()


def authority_of(file: str | Path) -> bytes:
    """A certificate of an authority that a user trusts, PEM. Raises `CertificateError`."""
    try:
        return _pem(x509.load_pem_x509_certificates(Path(file).read_bytes()))
    except OSError as error:
        raise CertificateError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise CertificateError(f"certificate {file} is no PEM certificate, or damaged") from error


def trial_signing() -> Signing:
    """This machine's own certificate, made at first use, and anew when it is old or damaged.

    Raises `CertificateError` for a folder that others may write to, `OutputError` where none can be kept.
    """
    folder = trial_folder()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = folder.stat()
    if kept.st_uid != os.geteuid() or kept.st_mode & 0o022:
        raise CertificateError(f"{folder} belongs to somebody else or is open to others; make it yours, with chmod 700")
    if (signing := _kept(folder)) is not None:
        return signing
    with alone(folder / "trial"):
        if (signing := _kept(folder)) is not None:
            return signing
        authority, made, secret = _trial()
        # Videos that were signed before stay this machine's own.
        write_synced(folder / "authority.pem", b"".join((*trial_authorities(), authority)))
        write_synced(folder / "key.pem", secret)
        write_synced(folder / "chain.pem", made)
        return signing_of(folder / "chain.pem", folder / "key.pem")


def _kept(folder: Path) -> Signing | None:
    """What was made before, where it is whole and young."""
    try:
        authority_of(folder / "authority.pem")
        signing = signing_of(folder / "chain.pem", folder / "key.pem")
        ends = x509.load_pem_x509_certificate(signing.chain).not_valid_after_utc.date()
    except CertificateError:
        return None
    return signing if ends > date.today() + timedelta(days=RENEWED_BEFORE) else None


def signing_of(certificate: str | Path, key: str | Path) -> Signing:
    """A certificate with its chain and its key, both PEM files. Raises `CertificateError`."""
    try:
        pem, secret = Path(certificate).read_bytes(), Path(key).read_bytes()
    except OSError as error:
        raise CertificateError(f"{error.filename}: {error.strerror}") from error
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateError(f"certificate {certificate} is no PEM certificate, or damaged") from error
    try:
        private = load_pem_private_key(secret, None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"key {key} is no PEM private key without a password, or damaged") from error
    if private.public_key() != chain[0].public_key():
        raise CertificateError(f"key {key} is not the key of the first certificate in {certificate}")
    today = date.today()
    if not chain[0].not_valid_before_utc.date() <= today <= chain[0].not_valid_after_utc.date():
        raise CertificateError(
            f"certificate {certificate} holds from {chain[0].not_valid_before_utc:%Y-%m-%d} to "
            f"{chain[0].not_valid_after_utc:%Y-%m-%d}, and today is {today}"
        )
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        algorithm = _CURVES[private.curve.name]
    elif isinstance(private, ed25519.Ed25519PrivateKey):
        algorithm = "ed25519"
    elif isinstance(private, rsa.RSAPrivateKey):
        algorithm = "ps256"
    else:
        raise CertificateError(f"key {key} is of no kind that C2PA signs with: P-256, P-384, P-521, Ed25519 or RSA")
    # As C2PA's library reads them, whatever else stands in the files.
    clean = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Signing(_pem(chain), clean, algorithm, f"certificate {certificate}")


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def _trial() -> tuple[bytes, bytes, bytes]:
    """The certificate of an authority whose key nobody keeps; a chain that ends in it; the key of the chain's first."""
    root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("fedtalk trial authority", root.public_key(), root, is_authority=True)
    made = _certificate(TRIAL, own.public_key(), root, is_authority=False)
    pem = authority.public_bytes(Encoding.PEM)
    secret = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, made.public_bytes(Encoding.PEM) + pem, secret


def _certificate(
    subject: str, public: ec.EllipticCurvePublicKey, root: ec.EllipticCurvePrivateKey, is_authority: bool
) -> x509.Certificate:
    """As C2PA asks: a leaf with a purpose, under an authority."""
    noon = datetime.combine(date.today(), time(12), UTC)
    unused = "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"
    usage = dict.fromkeys((*unused, "decipher_only"), False)
    usage |= {"digital_signature": not is_authority, "key_cert_sign": is_authority, "crl_sign": is_authority}
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name("fedtalk trial authority"))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(noon - timedelta(days=2))
        .not_valid_after(noon + timedelta(days=TRIAL_DAYS))
        .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
    )
    if not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(root, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, text), x509.NameAttribute(NameOID.ORGANIZATION_NAME, text)]
    )
