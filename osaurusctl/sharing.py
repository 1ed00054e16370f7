"""Open the files of a model for the import process of the daemon, which may not have access to them."""

import contextlib
import os
import resource
import selectors
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from osaurusctl.errors import CliError, DaemonNotRunning
from osaurusd.wire import model_files, open_files
from osaurusd.wire.open_files import Offer

_SOFT_FILE_LIMIT = 8192


@contextlib.contextmanager
def shared_files(source: Path, run_dir: Path) -> Iterator[Path]:
    """Open a file, or the files of a folder, and pass them to the first process that connects to the yielded socket.

    Args:
        source: what to open.
        run_dir: where to create the socket: the private folder of the daemon's own socket.

    Raises:
        CliError: a file cannot be opened, or the daemon does not run.
    """
    with contextlib.ExitStack() as stack:
        yield _share(*_open(source, stack), run_dir, stack)


@contextlib.contextmanager
def shared_items(files: Mapping[str, Path], run_dir: Path) -> Iterator[Path]:
    """Like `shared_files`, for files of any folders under the names that are the keys of `files`."""
    with contextlib.ExitStack() as stack:
        _raise_file_limit()
        try:
            descriptors = [_open_file(path, stack) for path in files.values()]
        except OSError as error:
            raise CliError(f"cannot open {error.filename}: {error.strerror}", hint=_hint(error)) from error
        yield _share(Offer(folder=True, names=list(files)), descriptors, run_dir, stack)


def _share(offer: Offer, descriptors: list[int], run_dir: Path, stack: contextlib.ExitStack) -> Path:
    """Pass files to the first process that connects to the returned socket, until the stack is closed."""
    path = open_files.create_socket_path(run_dir)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        listener.bind(str(path))
    except FileNotFoundError as error:
        raise DaemonNotRunning from error
    stack.callback(path.unlink, missing_ok=True)
    path.chmod(0o600)
    listener.listen(1)
    stop, stopped = (stack.enter_context(end) for end in socket.socketpair())
    sender = threading.Thread(target=_send_to_first, args=(path, listener, stopped, offer, descriptors))
    sender.start()
    stack.callback(sender.join)
    stack.callback(stop.shutdown, socket.SHUT_RDWR)
    return path


def _send_to_first(
    path: Path, listener: socket.socket, stopped: socket.socket, offer: Offer, descriptors: list[int]
) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(stopped, selectors.EVENT_READ)
        ready = {key.fileobj for key, _ in selector.select()}
    if listener in ready:
        # The import process reports what it did not receive.
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            # It has no further use, and would remain if this process is killed.
            path.unlink(missing_ok=True)
            open_files.send(connection, offer, descriptors)


def _open(source: Path, stack: contextlib.ExitStack) -> tuple[Offer, list[int]]:
    try:
        if not source.is_dir():
            names = open_files.part_names(source.name)
            if missing := [name for name in names[1:] if not source.with_name(name).exists()]:
                raise CliError(
                    f"the part {missing[0]} of the model is missing", hint=f"copy all {len(names)} parts to one folder"
                )
            return Offer(folder=False, names=names), [_open_file(source.with_name(name), stack) for name in names]
        # Links to files are followed, since the Hugging Face cache consists of them.
        paths = [*source.iterdir(), *model_files.find_subfolder_files(source)]
        files = sorted(path for path in paths if path.is_file())
        if len(files) > open_files.MAX_FILES:
            raise CliError(f"{source} has more than {open_files.MAX_FILES} files; it is not a model folder")
        _raise_file_limit()
        names = [path.relative_to(source).as_posix() for path in files]
        return Offer(folder=True, names=names), [_open_file(path, stack) for path in files]
    except OSError as error:
        raise CliError(f"cannot open {error.filename or source}: {error.strerror}", hint=_hint(error)) from error


def _open_file(path: Path, stack: contextlib.ExitStack) -> int:
    # O_NONBLOCK: opening a named pipe would wait for its writer. The import process rejects it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    stack.callback(os.close, descriptor)
    return descriptor


def _raise_file_limit() -> None:
    """Permit more open files; the soft limit on macOS is 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _SOFT_FILE_LIMIT if hard == resource.RLIM_INFINITY else min(_SOFT_FILE_LIMIT, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _hint(error: OSError) -> str | None:
    if sys.platform == "darwin" and isinstance(error, PermissionError):
        return "grant your terminal access in System Settings > Privacy & Security > Files and Folders"
    return None
