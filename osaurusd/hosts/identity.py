"""This host's identity: a private key and a self-signed certificate, created when they are first needed.

Other hosts know the certificate by its fingerprint, which pairing conveys. So no authority signs it, it names nothing,
and its dates have no meaning: a host whose clock is wrong is still the same host.
"""

import asyncio
import hashlib
import ssl
import subprocess
import sys
from pathlib import Path

import msgspec

from osaurusd.errors import InternalError
from osaurusd.log import get_logger
from osaurusd.platform import environment
from osaurusd.wire.files import replace_file

log = get_logger(__name__)

CREATE_SECONDS = 60.0

_END = "-----END CERTIFICATE-----\n"
_BEGIN = "-----BEGIN CERTIFICATE-----"


class Identity(msgspec.Struct, frozen=True):
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
    """Return a new key and certificate as PEM. The process that creates them uses a library of 9 MB."""
    command = (sys.executable, "-P", "-m", "osaurusd.hosts.new_identity")
    try:
        return subprocess.run(
            command, env=environment.minimal(), capture_output=True, timeout=CREATE_SECONDS, check=True
        ).stdout
    except subprocess.CalledProcessError as error:
        last_line = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(f"it could not be created: {last_line or error}") from error
    except subprocess.TimeoutExpired as error:
        raise ValueError("its creation timed out") from error
