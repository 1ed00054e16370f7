"""Whether there is room on the disk, and what is said when there is not."""

import errno
import shutil
from pathlib import Path

from osaurusd.downloads.worker.failure import PullError
from osaurusd.wire.errors import ErrorCode

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def check(folder: Path, needed: int, margin: int) -> None:
    """Refuse what would not fit.

    Args:
        folder: on the disk that is asked about.
        needed: bytes that are still to come.
        margin: bytes that must stay free.

    Raises:
        PullError: it would not fit; the message says how much to free.
    """
    free = shutil.disk_usage(folder).free
    if needed and needed + margin > free:
        raise PullError(
            f"the disk that holds {folder} has too little room: {size(needed)} are still to come, {size(free)} are "
            f"free and {size(margin)} of them shall stay so; free {size(needed + margin - free)}",
            ErrorCode.DISK_FULL,
        )


def explained(error: OSError, folder: Path, missing: int, margin: int) -> PullError:
    """A failure to write, in words; what has been received stays.

    Args:
        error: what writing raised.
        folder: on the disk in question.
        missing: bytes that are still to come.
        margin: bytes that must stay free.
    """
    reason = error.strerror or str(error)
    if error.errno == errno.EFBIG:
        return PullError(f"{folder}: {reason}; a limit on the size of files is in force", ErrorCode.DISK_FULL)
    if error.errno not in _FULL:
        return PullError(f"{error.filename or folder}: {reason}")
    short = max(missing + margin - shutil.disk_usage(folder).free, 0)
    return PullError(
        f"the disk that holds {folder} is full: {size(missing)} are still to come; free {size(short)} and pull again, "
        "it goes on where it was",
        ErrorCode.DISK_FULL,
    )


def size(count: int) -> str:
    """Bytes in decimal units, as disks are sold."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
