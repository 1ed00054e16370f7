"""Opening the doors: TCP sockets on both loopback families, and the Unix socket with its lock."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from osaurusd.errors import HomeInUse, ListenFailed
from osaurusd.log import get_logger

log = get_logger(__name__)

BACKLOG = 512
LOCK_TRIES = 5
LOCK_PAUSE_SECONDS = 0.02

# IPv6 may be switched off or have no loopback address; then 127.0.0.1 has to do.
_NO_SUCH_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}


def tcp(host: str, port: int, admit: Callable[[list[str]], None] = lambda _: None) -> list[socket.socket]:
    """Listening sockets for `host`; `localhost` means 127.0.0.1 and, where there is one, ::1. Port 0 picks one.

    Args:
        host, port: what to bind.
        admit: told the addresses before any is bound; what it raises is raised, and none is.

    Raises:
        ListenFailed: an address is taken or not ours; the message says which and why.
    """
    addresses = ["127.0.0.1", "::1"] if host == "localhost" else _resolve(host, port)
    admit(addresses)
    if host != "localhost":
        return _bind_all(addresses, port)
    first = _bind("127.0.0.1", port)
    try:
        return [first, _bind("::1", first.getsockname()[1])]
    except ListenFailed as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_SUCH_FAMILY:
            return [first]
        first.close()
        raise


def url(listener: socket.socket, *, tls: bool = False) -> str:
    """Where clients reach a listening socket."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@contextlib.contextmanager
def locked_home(lock: Path, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Own this home while the block runs; the lock file holds our pid and is never removed.

    Args:
        lock: the file.
        wait: told who owns it, before the end of that one is waited for, however long that takes.

    Raises:
        HomeInUse: another daemon owns it, and nobody said to `wait`; the message has its pid.
    """
    make_private_dir(lock.parent)
    descriptor = _open_own(lock)
    try:
        if not _lock(descriptor):
            pid = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            reason = f"another osaurusd (pid {pid}) already runs on {lock.parent.parent}"
            if wait is None:
                raise HomeInUse(reason)
            wait(reason)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def unix(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket, 0600 in a 0700 directory; call it under `locked_home`.

    The lock says that no daemon serves a socket file that lies there; nor may anything else. Then it is a leftover,
    which is replaced. At the end ours is removed, unless another one lies there by then.

    Raises:
        ListenFailed: the path is taken by something that is no socket of ours, or by one that somebody listens on.
    """
    make_private_dir(path.parent)
    _remove_leftover(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # From the first moment on nobody else may connect; chmod after bind would leave a gap.
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        ours = path.lstat()
        listener.listen(BACKLOG)
        listener.setblocking(False)
        try:
            yield listener
        finally:
            _remove_if(path, ours)
    finally:
        listener.close()


def make_private_dir(path: Path) -> None:
    """Make a directory that only its owner can enter, or check that it is one.

    Raises:
        ListenFailed: it is not a directory of ours; one of ours that others can enter is closed to them.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ListenFailed(f"{path} is not a directory of this user; move it away")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)


def _open_own(path: Path) -> int:
    """Open a file of ours to be written to, which is made if it is not there, and 0600 whatever it was.

    Raises:
        ListenFailed: it is a link, no file, or another user's, put there before the folder was closed to others.
    """
    try:
        # Not to wait for whoever reads from a pipe.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise ListenFailed(f"{path} cannot be opened: {error.strerror or error}; move it away") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise ListenFailed(f"{path} is in the way and no file of this user; move it away")
    os.fchmod(descriptor, 0o600)
    return descriptor


def _lock(descriptor: int) -> bool:
    """Take the lock unless it is held. `osaurusctl` holds it for a moment when it looks, so one look is not enough."""
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(LOCK_PAUSE_SECONDS)
    return False


def _bind_all(addresses: list[str], port: int) -> list[socket.socket]:
    """All or none."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(_bind(address, port)) for address in addresses]
        stack.pop_all()
        return listeners


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenFailed(f"the host {host!r} is no address of this machine: {error}") from error
    return list(dict.fromkeys(str(address[4][0]) for address in found))


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener: socket.socket | None = None
    try:
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
        hint = "; `--port` or `server.port` chooses another" if error.errno == errno.EADDRINUSE else ""
        raise ListenFailed(f"cannot listen on {address} port {port}: {error.strerror or error}{hint}") from error
    return listener


def _remove_leftover(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise ListenFailed(f"{path} is in the way and no socket of this user; move it away")
    if _is_live(path):
        raise ListenFailed(f"{path} is in use by another program; end that, or move the socket away")
    path.unlink()


def _is_live(path: Path) -> bool:
    """Whether somebody listens on a socket file, or may do so: only a refusal says that nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            # Too many wait there already, or it takes datagrams.
            return True
    return True


def _remove_if(path: Path, ours: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(path.lstat(), ours):
            path.unlink()
