"""Memory of this machine and of processes as macOS accounts for it."""

import ctypes
import sys
from enum import IntEnum
from functools import cache
from typing import Any

import psutil

_PRESSURE_LEVEL = b"kern.memorystatus_vm_pressure_level"

# struct rusage_info_v0 of <sys/resource.h>: a UUID of 16 bytes, then ten numbers of 8 bytes. The eighth is
# ri_phys_footprint.
_RUSAGE_INFO_V0 = 0
_RUSAGE_BYTES = 96
_PHYS_FOOTPRINT_OFFSET = 72


class PressureLevel(IntEnum):
    """How short of memory the system is; the numbers are those of the kernel."""

    NORMAL = 1
    WARNING = 2
    CRITICAL = 4


def pressure_level(*, platform: str = sys.platform, library: Any = None) -> PressureLevel | None:
    """Return the memory pressure; None on systems other than macOS.

    Args:
        platform: a value of `sys.platform`.
        library: the C library; None for the one of this process.
    """
    if platform != "darwin":
        return None
    level = ctypes.c_int()
    size = ctypes.c_size_t(ctypes.sizeof(level))
    library = library or _c_library()
    if library.sysctlbyname(_PRESSURE_LEVEL, ctypes.byref(level), ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    # Other numbers are not documented; a level in between counts as the lower one.
    return max((each for each in PressureLevel if each <= level.value), default=PressureLevel.NORMAL)


def release_free_memory(*, platform: str = sys.platform, library: Any = None) -> None:
    """Return freed memory to the system. The C library of Linux otherwise keeps most of what large images took.

    Args:
        platform: a value of `sys.platform`.
        library: the C library; None for the one of this process.
    """
    if platform == "linux" and hasattr(library := library or _c_library(), "malloc_trim"):  # musl has none
        library.malloc_trim(ctypes.c_size_t(0))


def footprint(pid: int, *, platform: str = sys.platform, library: Any = None) -> int:
    """Return the memory that the system attributes to a process, in bytes; 0 if the process does not exist.

    On macOS this is what Activity Monitor shows. The resident size lacks compressed memory and most buffers of Metal.
    """
    if platform == "darwin":
        usage = ctypes.create_string_buffer(_RUSAGE_BYTES)
        library = library or _c_library()
        if library.proc_pid_rusage(ctypes.c_int(pid), ctypes.c_int(_RUSAGE_INFO_V0), usage):
            return 0
        return int.from_bytes(usage.raw[_PHYS_FOOTPRINT_OFFSET : _PHYS_FOOTPRINT_OFFSET + 8], sys.byteorder)
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


@cache
def _c_library() -> ctypes.CDLL:
    # The libraries of the process itself: on macOS, every process is linked with libSystem.
    return ctypes.CDLL(None)
