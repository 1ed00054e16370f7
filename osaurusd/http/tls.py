"""TLS for the sockets that clients connect to."""

import asyncio
import contextlib
import socket
import ssl
import stat
from pathlib import Path
from typing import NoReturn

from aiohttp import web

from osaurusd.config import Server
from osaurusd.errors import ConfigError
from osaurusd.http import listen

HANDSHAKE_SECONDS = 10.0
"""A client that has not agreed on a key by then is hung up on."""

FAREWELL_SECONDS = 2.0
"""How long a closed connection waits for the client to close it too."""


class Tls:
    """Certificate and key of the server. Blocking.

    Args:
        certificate, key: the files; the certificate's may have its chain after it.

    Raises:
        ConfigError: they cannot be used; the message names the setting at fault.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self.context = _context(*self._files)
        self._newest = self.context
        self.context.sni_callback = self._present_newest

    def renew(self, server: Server) -> None:
        """Read the files again, if they are still the ones that are wanted; handshakes from now on use what they hold.

        Raises:
            ConfigError: they cannot be used; what was read before stays.
        """
        if _files(server) == self._files:
            self._newest = _context(*self._files)

    @property
    def fault(self) -> str | None:
        """What is wrong with the files though they can be used. A key of root's may have a group that reads it."""
        key = self._files[1]
        found = key.stat()
        if stat.S_IMODE(found.st_mode) & (0o027 if found.st_uid == 0 else 0o077):
            return f"other users can read the private key {key}; `chmod 600` keeps it to its owner"
        return None

    def _present_newest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called at the beginning of each handshake, where another certificate can be chosen."""
        connection.context = self._newest


def of(server: Server) -> Tls | None:
    """What the configuration asks for; None for no TLS. Raises as `Tls` does."""
    files = _files(server)
    return None if files is None else Tls(*files)


class TlsSite(web.BaseSite):
    """Serves a listening socket over TLS, as `web.SockSite` does, with a limit of our own to handshakes."""

    def __init__(self, runner: web.BaseRunner, listener: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(runner, ssl_context=context)
        self._listener = listener
        self._context = context

    @property
    def name(self) -> str:
        return listen.url(self._listener, tls=True)

    async def start(self) -> None:
        await super().start()
        server = self._runner.server
        assert server is not None
        self._server = await asyncio.get_running_loop().create_server(
            server,
            sock=self._listener,
            ssl=self._context,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=FAREWELL_SECONDS,
        )


def _files(server: Server) -> tuple[Path, Path] | None:
    certificate, key = server.tls_certificate, server.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing, given = ("tls_key", "tls_certificate") if key is None else ("tls_certificate", "tls_key")
        raise ConfigError(
            f"`server.{given}` is set and `server.{missing}` is not: TLS needs both", param=f"server.{missing}"
        )
    return _path("tls_certificate", certificate), _path("tls_key", key)


def _path(setting: str, value: str) -> Path:
    # A service does not start where the user was.
    with contextlib.suppress(RuntimeError):
        if (path := Path(value).expanduser()).is_absolute():
            return path
    raise ConfigError(f"`server.{setting}`: {value!r} is no absolute path", param=f"server.{setting}")


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    for setting, file in (("tls_certificate", certificate), ("tls_key", key)):
        _refuse_unreadable(setting, file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Loaded together, a bad certificate and a bad key are told apart by nothing.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
    except ssl.SSLError as error:
        _refuse("tls_certificate", f"{certificate} has no certificate in PEM form", error)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            _refuse("tls_key", f"{key} is not the key of the certificate {certificate}", error)
        _refuse("tls_key", f"{key} has no private key in PEM form without a passphrase", error)
    return context


def _refuse_unreadable(setting: str, file: Path) -> None:
    try:
        with file.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        _refuse(setting, f"{file}: {error.strerror}", error)
    except ValueError as error:
        _refuse(setting, f"{str(file)!r}: {error}", error)


def _refuse(setting: str, what: str, error: Exception) -> NoReturn:
    raise ConfigError(f"`server.{setting}`: {what}", param=f"server.{setting}") from error


def _no_password() -> str:
    """OpenSSL would ask at the terminal for the passphrase of a key that has one."""
    return ""
