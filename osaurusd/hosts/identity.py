"""This host's identity: a private key and a self-signed certificate, created when they are first needed.

Other hosts know the certificate by its fingerprint, which pairing conveys. So no authority signs it, it names nothing,
and its dates have no meaning: a host whose clock is wrong is still the same host.
"""

import asyncio
import datetime
import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from osaurusd.errors import InternalError
from osaurusd.log import get_logger
from osaurusd.platform.files import replace_file

log = get_logger(__name__)

_VALID_FROM = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
# The date that means "no expiry" (RFC 5280, section 4.1.2.5).
_VALID_UNTIL = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_END = "-----END CERTIFICATE-----\n"
_BEGIN = "-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True)
class Identity:
    """The identity of a host.

    Attributes:
        file: a PEM file with the private key and the certificate; only its owner can read it.
        certificate: the certificate as PEM.
        fingerprint: SHA-256 of the certificate.
    """

    file: Path
    certificate: str
    fingerprint: str


class IdentityFile:
    """The file of this host's identity. It is read, or created, when the identity is first needed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._identity: Identity | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> Identity:
        """Return the identity.

        Raises:
            InternalError: the file is damaged or cannot be written. A new identity would end all pairings, so that the
                user has to decide.
        """
        async with self._lock:
            if self._identity is None:
                self._identity = await asyncio.to_thread(_load_or_create, self._file)
            return self._identity


def fingerprint_of(certificate: bytes) -> str:
    """Return the fingerprint of a certificate in DER form."""
    return hashlib.sha256(certificate).hexdigest()


def fingerprint_of_pem(certificate: str) -> str:
    """Return the fingerprint of a single certificate in PEM form.

    Raises:
        ValueError: it is not one.
    """
    if certificate.count(_BEGIN) != 1:
        raise ValueError("not a single PEM certificate")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificate)
        return fingerprint_of(ssl.PEM_cert_to_DER_cert(certificate))
    except ssl.SSLError as error:
        raise ValueError("not a PEM certificate") from error


def _load_or_create(file: Path) -> Identity:
    try:
        if not file.exists():
            replace_file(file, _create())
            log.info("identity of this host created", file=str(file))
        file.chmod(0o600)
        certificate = _certificate_in(file.read_text(encoding="ascii"))
        identity = Identity(file, certificate, fingerprint_of_pem(certificate))
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file, password=str)
    except (OSError, ValueError) as error:
        raise InternalError(
            f"the identity of this host, {file}, is unusable: {error}. Restore the file, or remove it, restart the "
            "daemon, and pair all hosts again"
        ) from error
    return identity


def _certificate_in(text: str) -> str:
    begin, end = text.find(_BEGIN), text.find(_END)
    if begin < 0 or end < begin:
        raise ValueError("it contains no certificate")
    return text[begin : end + len(_END)]


def _create() -> bytes:
    """Create a key and a certificate, as PEM."""
    # The library takes 9 MB, and each host needs it only once.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # Certificates with the same name would be taken for issuers of each other. A host's own name would tell it to
    # everyone who connects.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{serial:x}")])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key(), serial_number=serial)
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_UNTIL)
        # It must not vouch for another certificate.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
