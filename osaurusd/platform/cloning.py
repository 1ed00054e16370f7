"""Copying a file without copying its blocks, on file systems that can share them (reflinks)."""

import ctypes
import errno
import fcntl
import os
import sys
from pathlib import Path

from osaurusd.wire.files import sync_file

# `_IOW(0x94, 9, int)` of linux/fs.h; Python has it as `fcntl.FICLONE` since 3.12 only.
_FICLONE = 0x40049409
# `clonefile(2)` of macOS: descriptors relative to the working directory, and a copy that is owned by the caller.
_AT_FDCWD = -2
_CLONE_NOOWNERCOPY = 0x0002

_NOT_SUPPORTED = {errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EXDEV, errno.ENOTSUP}


def clone_file(source: int, target: Path) -> bool:
    """Create `target` with the content of an open file, and sync it to disk; return False if that is not possible.

    The source is a descriptor, because this process may not be permitted to open the file itself.

    Raises:
        OSError: the content could be shared, but creating the file failed.
    """
    try:
        if sys.platform == "darwin":
            _clone_on_macos(source, target)
        elif sys.platform == "linux":
            _clone_on_linux(source, target)
        else:
            return False
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return False
        raise
    sync_file(target)
    return True


def _clone_on_linux(source: int, target: Path) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        fcntl.ioctl(descriptor, _FICLONE, source)
    except OSError:
        target.unlink()
        raise
    finally:
        os.close(descriptor)


def _clone_on_macos(source: int, target: Path) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.fclonefileat(source, _AT_FDCWD, os.fsencode(target), _CLONE_NOOWNERCOPY) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))
