"""Listening sockets: TCP on both loopback families, and the Unix socket together with the lock of its home."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from osaurusd import addresses
from osaurusd.errors import HomeInUse, ListenFailed
from osaurusd.wire import ports
from osaurusd.wire.errors import as_json

BACKLOG = 512
LOCK_ATTEMPTS = 5
PORT_ATTEMPTS = 10
LOCK_PAUSE_SECONDS = 0.02

# IPv6 may be disabled or have no loopback address; 127.0.0.1 then suffices.
_FAMILY_UNAVAILABLE = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}


def listen_tcp(
    host: str, port: int, check_addresses: Callable[[list[str]], None] = lambda _: None
) -> list[socket.socket]:
    """Listen on `host`; `localhost` means 127.0.0.1 and, if available, ::1. Port 0 picks a free port.

    Args:
        host, port: the address to bind.
        check_addresses: called with the resolved addresses before any is bound; its exceptions are passed on.

    Raises:
        ListenFailed: an address is in use or not available; the message names it.
    """
    addresses = ["127.0.0.1", "::1"] if host == "localhost" else _resolve(host, port)
    check_addresses(addresses)
    if host != "localhost":
        return _bind_all(addresses, port)
    # A port that is free on 127.0.0.1 may be in use on ::1.
    for _ in range(PORT_ATTEMPTS - 1 if port == 0 else 0):
        with contextlib.suppress(ListenFailed):
            return _bind_localhost(port)
    return _bind_localhost(port)


def _bind_localhost(port: int) -> list[socket.socket]:
    ipv4 = _bind("127.0.0.1", port)
    try:
        return [ipv4, _bind("::1", ipv4.getsockname()[1])]
    except ListenFailed as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FAMILY_UNAVAILABLE:
            return [ipv4]
        ipv4.close()
        raise


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """Return the URL of a listening TCP socket."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://{addresses.join(host, port)}"


@contextlib.contextmanager
def lock_home(lock: Path, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Own this home while the block runs. The lock file holds the pid of the owner and is never removed.

    Args:
        lock: the file.
        on_wait: called with the reason before waiting, without a timeout, until the current owner exits.

    Raises:
        HomeInUse: another daemon owns the home, and there is no `on_wait`; the message has its pid.
    """
    make_private_dir(lock.parent)
    descriptor = _open_private(lock)
    try:
        if not _try_lock(descriptor):
            pid = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            reason = f"another osaurusd (pid {pid}) already runs on {lock.parent.parent}"
            if on_wait is None:
                raise HomeInUse(reason)
            on_wait(reason)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def listen_unix(path: Path) -> Iterator[socket.socket]:
    """Listen on a Unix socket with mode 0600 in a directory with mode 0700. Requires `lock_home`.

    A stale socket file, which no process serves, is replaced. The file is removed afterwards, unless another
    program has replaced it.

    Raises:
        ListenFailed: the path is used by another program, or is not a socket of this user.
    """
    make_private_dir(path.parent)
    _remove_leftover(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Other users must not be able to connect at any moment; chmod after bind would leave a gap.
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        status = path.lstat()
        listener.listen(BACKLOG)
        listener.setblocking(False)
        try:
            yield listener
        finally:
            _remove_if_same(path, status)
    finally:
        listener.close()


def make_private_dir(path: Path) -> None:
    """Create a directory that only its owner can enter, or restrict an existing one to its owner.

    Raises:
        ListenFailed: the path is not a directory of this user.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ListenFailed(f"{path} is not a directory of this user; move it away")
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)


def _open_private(path: Path) -> int:
    """Open a regular file of this user for writing with mode 0600; create it if necessary.

    Raises:
        ListenFailed: the path is a link, not a regular file, or another user's.
    """
    try:
        # O_NONBLOCK: opening a named pipe would wait for its reader.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise ListenFailed(f"{path} cannot be opened: {error.strerror or error}; move it away") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise ListenFailed(f"{path} is not a regular file of this user; move it away")
    os.fchmod(descriptor, 0o600)
    return descriptor


def _try_lock(descriptor: int) -> bool:
    """Take the lock unless a daemon holds it. `osaurusctl` holds it briefly to test it, hence several attempts."""
    for _ in range(LOCK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(LOCK_PAUSE_SECONDS)
    return False


def _bind_all(addresses: list[str], port: int) -> list[socket.socket]:
    """Bind all addresses or none."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(_bind(address, port)) for address in addresses]
        stack.pop_all()
        return listeners


def _resolve(host: str, port: int) -> list[str]:
    try:
        results = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenFailed(f"cannot resolve the host {as_json(host)}: {error}") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in results))


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener: socket.socket | None = None
    try:
        if sys.platform == "darwin" and port:
            _check_unused(address, port)
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        if listener is not None:
            listener.close()
        hint = "; choose another with `--port` or `server.port`" if error.errno == errno.EADDRINUSE else ""
        raise ListenFailed(f"cannot listen on {address} port {port}: {error.strerror or error}{hint}") from error
    return listener


def _check_unused(address: str, port: int) -> None:
    """Check that no program accepts connections on an address.

    On macOS, SO_REUSEADDR permits 127.0.0.1 although another program listens on all addresses with the same port, and
    the reverse. Some clients would then reach that program. Binding without SO_REUSEADDR would detect it, but fails for
    a minute after each restart, while old connections are in TIME_WAIT.

    Raises:
        OSError: a program accepts connections there; the error is the one of a failed bind.
    """
    if ports.accepts_connections(address, port):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _remove_leftover(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        raise ListenFailed(f"{path} is not a socket of this user; move it away")
    if _is_served(path):
        raise ListenFailed(f"{path} is in use by another program; stop that program, or move the socket away")
    path.unlink()


def _is_served(path: Path) -> bool:
    """Whether a process may listen on a socket file; only a refused connection proves that none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            # The backlog is full, or it is a datagram socket.
            return True
    return True


def _remove_if_same(path: Path, status: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(path.lstat(), status):
            path.unlink()
