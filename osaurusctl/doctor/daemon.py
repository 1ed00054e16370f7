"""Checks of the daemon: that it runs, is the one that should, and can be reached."""

import http.client
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from urllib.parse import urlsplit

from osaurusctl import config_file
from osaurusctl.doctor.check import Check, Patient, failure, ok, warning
from osaurusctl.errors import RESTART, CliError
from osaurusd import __version__
from osaurusd.wire import ports
from osaurusd.wire.installation import installation

_ANSWER_SECONDS = 5.0
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def configuration(patient: Patient) -> Iterator[Check]:
    try:
        config_file.load(patient.paths.config_file)
        yield ok("configuration", f"{patient.paths.config_file} can be used")
    except CliError as error:
        yield failure("configuration", str(error), "mend the file; `osaurusctl config check` looks again")


def daemon_serves(patient: Patient) -> Iterator[Check]:
    status, facts = patient.status, patient.facts
    if status is None:
        found = patient.unanswered or "osaurusd does not run"
        fix = "`osaurusctl start`" if facts else "`osaurusctl up`"
        yield failure("daemon", found, RESTART if patient.unanswered else fix)
    elif not status.serving:
        yield failure("daemon", "; ".join(status.faults), "mend that: it goes on by itself")
    elif facts and facts.running and facts.pid != status.pid:
        fix = f"`kill {status.pid}`: the service takes over"
        yield failure("daemon", f"another osaurusd (pid {status.pid}) has the home of the service", fix)
    else:
        yield ok("daemon", f"serves at {', '.join(status.endpoints)} (pid {status.pid})")


def upgrade(patient: Patient) -> Iterator[Check]:
    if patient.status is not None and patient.status.version != __version__:
        found = f"the daemon is {patient.status.version}, this is {__version__}"
        yield failure("upgrade", found, f"{RESTART}: restart to finish the upgrade")
        return
    if patient.diagnosis is None:
        return
    running, here = patient.diagnosis.installation, installation()
    old = [
        f"{name} {version} (on disk: {here.packages[name]})"
        for name, version in running.packages.items()
        if here.packages.get(name, version) != version
    ]
    if running.executable != here.executable:
        yield warning("upgrade", f"the daemon runs {running.executable}, and this {here.executable}")
    elif old:
        yield failure("upgrade", f"the daemon still runs {', '.join(old)}", f"{RESTART}: restart to finish the upgrade")


def versions(patient: Patient) -> Iterator[Check]:
    known = patient.diagnosis.installation if patient.diagnosis else installation()
    packages = ", ".join(f"{name} {version}" for name, version in known.packages.items())
    yield ok("versions", f"Python {known.python}, {packages}")


def port(patient: Patient) -> Iterator[Check]:
    """Who has the port that the daemon has, or would take."""
    if patient.status is not None and patient.status.serving:
        for endpoint in patient.status.endpoints:
            yield from _endpoint(endpoint)
        return
    number = _configured_port(patient)
    if number is None or number == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            holder = ports.holder(number) or "a process of another user"
            fix = "end that one, or `osaurusctl config set server.port N`"
            yield failure("port", f"127.0.0.1 port {number}: {error.strerror}; {holder} holds it", fix)
        else:
            yield ok("port", f"127.0.0.1 port {number} is free")


def _configured_port(patient: Patient) -> int | None:
    try:
        job = patient.manager.recorded() if patient.manager else None
    except CliError:
        job = None
    if job is not None and job.port is not None:
        return job.port
    return patient.config.server.port if patient.config else None


def _endpoint(endpoint: str) -> Iterator[Check]:
    """Whether clients reach it there."""
    address = urlsplit(endpoint)
    host = _LOOPBACK.get(address.hostname or "", address.hostname or "127.0.0.1")
    connection = http.client.HTTPConnection(host, address.port, timeout=_ANSWER_SECONDS)
    if address.scheme == "https":
        connection = http.client.HTTPSConnection(host, address.port, timeout=_ANSWER_SECONDS, context=_any_name())
    try:
        connection.request("GET", "/health")
        code = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        yield failure("port", f"{endpoint} does not answer: {error}", RESTART)
    else:
        if code == 200:
            yield ok("port", f"{endpoint} answers")
        else:
            yield failure("port", f"{endpoint}/health answers {code}", "`osaurusctl logs`")
    finally:
        connection.close()


def _any_name() -> ssl.SSLContext:
    """The question is whether it answers, at an address that its certificate need not name."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def exposure(patient: Patient) -> Iterator[Check]:
    """Whether other machines can connect, and what is asked of them."""
    found = patient.status.protection if patient.status else None
    if found is None:
        return
    key_made = "`osaurusctl key create` makes one"
    if found.key_required and not found.keys:
        yield failure("access", "API keys are asked for over TCP, and there is none", key_made)
    elif not found.exposed:
        yield ok("access", "only programs on this machine can connect")
    elif not found.key_required:
        what = "other machines can connect, and nobody is asked for an API key"
        yield warning("access", what, f"{key_made}; then take `--insecure` or `server.insecure` away")
    elif not found.tls:
        what = "other machines can connect with an API key, and it travels without TLS"
        yield warning("access", what, "set `server.tls_certificate` and `server.tls_key`, unless the network is yours")
    else:
        yield ok("access", "other machines can connect, over TLS and with an API key")


def socket_permissions(patient: Patient) -> Iterator[Check]:
    if patient.status is None:
        return
    path = patient.paths.socket
    wrong = []
    for place, allowed in ((path, 0o600), (path.parent, 0o700)):
        found = place.lstat()
        if found.st_uid != os.geteuid():
            wrong.append(f"{place} belongs to another user")
        elif stat.S_IMODE(found.st_mode) & ~allowed:
            wrong.append(f"{place} has mode {stat.S_IMODE(found.st_mode):o}, and may have {allowed:o}")
    if wrong:
        yield failure("socket", "; ".join(wrong), f"{RESTART} makes it anew")
    else:
        yield ok("socket", f"{path} is its owner's only")


def open_files(patient: Patient) -> Iterator[Check]:
    if (seen := patient.diagnosis) is None:
        return
    text = f"{seen.open_files} of {seen.open_files_limit} open files used"
    if seen.open_files > seen.open_files_limit * 0.8:
        yield warning("files", text, f"{RESTART}; `ulimit -n` may be too low")
    else:
        yield ok("files", text)
