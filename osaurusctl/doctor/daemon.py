"""Checks of the daemon: configuration, version, port, access, socket."""

import http.client
import os
import ssl
import stat
from collections.abc import Iterator
from urllib.parse import urlsplit

from osaurusctl import config_file
from osaurusctl.doctor.check import Check, Context, failure, ok, warning
from osaurusctl.errors import RESTART, CliError
from osaurusd import __version__
from osaurusd.wire import ports
from osaurusd.wire.installation import installation

_HTTP_TIMEOUT_SECONDS = 5.0
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_FILES_WARNING_RATIO = 0.8


def check_configuration(context: Context) -> Iterator[Check]:
    try:
        config_file.load(context.paths.config_file)
        yield ok("configuration", f"{context.paths.config_file} is valid")
    except CliError as error:
        yield failure("configuration", str(error), 'fix the file, then run "osaurusctl config check"')


def check_serving(context: Context) -> Iterator[Check]:
    status, service = context.status, context.service
    if status is None and context.daemon_error:
        yield failure("daemon", context.daemon_error, RESTART)
    elif status is None:
        yield failure("daemon", "osaurusd is not running", f'run "osaurusctl {"start" if service else "up"}"')
    elif not status.serving:
        yield failure("daemon", "; ".join(status.faults), "fix this; the daemon then recovers automatically")
    elif service and service.running and service.pid != status.pid:
        detail = f"another osaurusd (pid {status.pid}) uses the home of the service"
        yield failure("daemon", detail, f'run "kill {status.pid}"; the service then takes over')
    else:
        yield ok("daemon", f"serving on {', '.join(status.endpoints)} (pid {status.pid})")


def check_drain(context: Context) -> Iterator[Check]:
    """Warn about a daemon that rejects requests: draining outlasts restarts and is easily forgotten."""
    if context.status is not None and context.status.drain.draining:
        yield warning("drain", "the daemon is draining and rejects new requests", 'run "osaurusctl undrain"')


def check_upgrade(context: Context) -> Iterator[Check]:
    if context.status is not None and context.status.version != __version__:
        detail = f"the daemon is version {context.status.version}, osaurusctl is {__version__}"
        yield failure("upgrade", detail, f"{RESTART} to finish the upgrade")
        return
    if context.diagnosis is None:
        return
    running, current = context.diagnosis.installation, installation()
    outdated = [
        f"{name} {version} (installed: {current.packages[name]})"
        for name, version in running.packages.items()
        if current.packages.get(name, version) != version
    ]
    if running.executable != current.executable:
        detail = f"the daemon runs {running.executable}, but osaurusctl runs {current.executable}"
        yield warning("upgrade", detail)
    elif outdated:
        detail = f"the daemon still runs {', '.join(outdated)}"
        yield failure("upgrade", detail, f"{RESTART} to finish the upgrade")


def list_versions(context: Context) -> Iterator[Check]:
    info = context.diagnosis.installation if context.diagnosis else installation()
    packages = ", ".join(f"{name} {version}" for name, version in info.packages.items())
    yield ok("versions", f"Python {info.python}, {packages}")


def check_port(context: Context) -> Iterator[Check]:
    """Check the endpoints of a serving daemon, or whether the port it would use is free."""
    if context.status is not None and context.status.serving:
        for endpoint in context.status.endpoints:
            yield from _check_endpoint(endpoint)
        return
    port = _configured_port(context)
    if port is None or port == 0:
        return
    used = [address for address in ("127.0.0.1", "::1") if ports.accepts_connections(address, port)]
    if used:
        owner = ports.holder(port) or "a process of another user"
        fix = 'stop that process, or run "osaurusctl config set server.port PORT"'
        yield failure("port", f"{', '.join(used)}: port {port} is in use by {owner}", fix)
    else:
        yield ok("port", f"port {port} is free")


def _configured_port(context: Context) -> int | None:
    try:
        job = context.manager.installed_job() if context.manager else None
    except CliError:
        job = None
    if job is not None and job.port is not None:
        return job.port
    return context.config.server.port if context.config else None


def _check_endpoint(endpoint: str) -> Iterator[Check]:
    url = urlsplit(endpoint)
    host = _LOOPBACK.get(url.hostname or "", url.hostname or "127.0.0.1")
    connection = http.client.HTTPConnection(host, url.port, timeout=_HTTP_TIMEOUT_SECONDS)
    if url.scheme == "https":
        context = _unverified_context()
        connection = http.client.HTTPSConnection(host, url.port, timeout=_HTTP_TIMEOUT_SECONDS, context=context)
    try:
        connection.request("GET", "/health")
        code = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        yield failure("port", f"{endpoint} does not respond: {error}", RESTART)
    else:
        if code == 200:
            yield ok("port", f"{endpoint} responds")
        else:
            yield failure("port", f"{endpoint}/health returned HTTP status {code}", 'run "osaurusctl logs"')
    finally:
        connection.close()


def _unverified_context() -> ssl.SSLContext:
    """Return a context that accepts any certificate: it need not name the loopback address of the check."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_access(context: Context) -> Iterator[Check]:
    """Check which clients can connect, and with which protection."""
    protection = context.status.protection if context.status else None
    if protection is None:
        return
    create_key = 'run "osaurusctl key create"'
    if protection.key_required and not protection.keys:
        yield failure("access", "TCP clients need an API key, but no key exists", create_key)
    elif not protection.exposed:
        yield ok("access", "only programs on this machine can connect")
    elif not protection.key_required:
        detail = "other machines can connect without an API key"
        yield warning("access", detail, f"{create_key}, then remove --insecure or `server.insecure`")
    elif not protection.tls:
        detail = "other machines can connect with an API key, but without TLS"
        yield warning("access", detail, "set `server.tls_certificate` and `server.tls_key`, or use a trusted network")
    else:
        yield ok("access", "other machines can connect with TLS and an API key")


def check_socket(context: Context) -> Iterator[Check]:
    if context.status is None:
        return
    path = context.paths.socket
    problems = []
    for place, allowed in ((path, 0o600), (path.parent, 0o700)):
        info = place.lstat()
        mode = stat.S_IMODE(info.st_mode)
        if info.st_uid != os.geteuid():
            problems.append(f"{place} belongs to another user")
        elif mode & ~allowed:
            problems.append(f"{place} has mode {mode:o} instead of {allowed:o}")
    if problems:
        yield failure("socket", "; ".join(problems), f"{RESTART} to create it again")
    else:
        yield ok("socket", f"only its owner can access {path}")


def check_open_files(context: Context) -> Iterator[Check]:
    if (diagnosis := context.diagnosis) is None:
        return
    detail = f"{diagnosis.open_files} of {diagnosis.open_files_limit} open files"
    if diagnosis.open_files > diagnosis.open_files_limit * _FILES_WARNING_RATIO:
        yield warning("files", detail, f'{RESTART}, and raise the limit ("ulimit -n") if this happens again')
    else:
        yield ok("files", detail)
