"""TLS on the sockets that clients connect to."""

import contextlib
import ssl
import stat
from pathlib import Path
from typing import NoReturn

from osaurusd.config import Server
from osaurusd.errors import ConfigError
from osaurusd.wire.errors import as_json


class Tls:
    """The server's certificate and key. Reading them blocks.

    Args:
        certificate: a PEM file, optionally followed by the certificate chain.
        key: a PEM file without passphrase.

    Raises:
        ConfigError: a file cannot be used; the message names the setting.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self.context = _load_context(*self._files)
        self._newest = self.context
        # Called at the start of each handshake; it may replace the connection's context.
        self.context.sni_callback = self._use_newest

    @classmethod
    def from_config(cls, server: Server) -> "Tls | None":
        """Load the configured files; return None if TLS is not configured."""
        files = _configured_files(server)
        return None if files is None else cls(*files)

    def reload(self, server: Server) -> None:
        """Read the files again for later handshakes, unless the configuration now names other files.

        Raises:
            ConfigError: a file cannot be used; the previous certificate stays in use.
        """
        if _configured_files(server) == self._files:
            self._newest = _load_context(*self._files)

    @property
    def fault(self) -> str | None:
        """A problem of the files that does not prevent their use. A key owned by root may be readable by its group."""
        key = self._files[1]
        status = key.stat()
        if stat.S_IMODE(status.st_mode) & (0o027 if status.st_uid == 0 else 0o077):
            return f"other users can read the private key {key}; run `chmod 600` on it"
        return None

    def _use_newest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest


def _configured_files(server: Server) -> tuple[Path, Path] | None:
    certificate, key = server.tls_certificate, server.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing, present = ("tls_key", "tls_certificate") if key is None else ("tls_certificate", "tls_key")
        raise ConfigError(
            f"`server.{present}` is set but `server.{missing}` is not; TLS needs both", param=f"server.{missing}"
        )
    return _absolute_path("tls_certificate", certificate), _absolute_path("tls_key", key)


def _absolute_path(setting: str, value: str) -> Path:
    # A service starts in another directory than the one where the user edited the configuration.
    with contextlib.suppress(RuntimeError):
        if (path := Path(value).expanduser()).is_absolute():
            return path
    raise ConfigError(f"`server.{setting}`: {as_json(value)} is not an absolute path", param=f"server.{setting}")


def _load_context(certificate: Path, key: Path) -> ssl.SSLContext:
    for setting, file in (("tls_certificate", certificate), ("tls_key", key)):
        _check_readable(setting, file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An error of `load_cert_chain` does not show whether the certificate or the key is malformed.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
    except ssl.SSLError as error:
        _reject("tls_certificate", f"{certificate} does not contain a PEM certificate", error)
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            _reject("tls_key", f"{key} is not the key of the certificate {certificate}", error)
        _reject("tls_key", f"{key} does not contain a PEM private key without passphrase", error)
    return context


def _check_readable(setting: str, file: Path) -> None:
    try:
        with file.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        _reject(setting, f"{file}: {error.strerror}", error)
    except ValueError as error:
        _reject(setting, f"{as_json(str(file))}: {error}", error)


def _reject(setting: str, reason: str, error: Exception) -> NoReturn:
    raise ConfigError(f"`server.{setting}`: {reason}", param=f"server.{setting}") from error


def _no_passphrase() -> str:
    """Keep OpenSSL from asking for a passphrase on the terminal."""
    return ""
