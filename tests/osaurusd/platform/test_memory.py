"""Memory pressure and footprints, read from a C library with the declarations of macOS's headers."""

import ctypes
import os
import sys

import psutil
import pytest

from osaurusd.platform import memory
from osaurusd.platform.memory import PressureLevel


class RusageInfo(ctypes.Structure):
    """struct rusage_info_v0 of <sys/resource.h>."""

    _fields_ = (
        ("ri_uuid", ctypes.c_uint8 * 16),
        ("ri_user_time", ctypes.c_uint64),
        ("ri_system_time", ctypes.c_uint64),
        ("ri_pkg_idle_wkups", ctypes.c_uint64),
        ("ri_interrupt_wkups", ctypes.c_uint64),
        ("ri_pageins", ctypes.c_uint64),
        ("ri_wired_size", ctypes.c_uint64),
        ("ri_resident_size", ctypes.c_uint64),
        ("ri_phys_footprint", ctypes.c_uint64),
        ("ri_proc_start_abstime", ctypes.c_uint64),
        ("ri_proc_exit_abstime", ctypes.c_uint64),
    )


class MacLibrary:
    """Calls with C calling conventions, which fail as on a Mac for other names, sizes and processes."""

    def __init__(self, level=1, footprint=0):
        self._level = level
        self._footprint = footprint
        sysctl = ctypes.CFUNCTYPE(
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_int),
            ctypes.POINTER(ctypes.c_size_t),
            ctypes.c_void_p,
            ctypes.c_size_t,
        )
        rusage = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
        self.sysctlbyname = sysctl(self._sysctlbyname)
        self.proc_pid_rusage = rusage(self._proc_pid_rusage)

    def _sysctlbyname(self, name, old, old_size, new, new_size):
        if name != b"kern.memorystatus_vm_pressure_level" or old_size[0] != 4 or new or new_size:
            return -1
        old[0] = self._level
        return 0

    def _proc_pid_rusage(self, pid, flavor, info):
        if pid != os.getpid() or flavor != 0:
            return -1
        usage = RusageInfo.from_address(info)
        usage.ri_resident_size, usage.ri_phys_footprint = 1, self._footprint
        return 0


@pytest.mark.parametrize(
    ("number", "level"),
    [
        (1, PressureLevel.NORMAL),
        (2, PressureLevel.WARNING),
        (4, PressureLevel.CRITICAL),
        (0, PressureLevel.NORMAL),
        (3, PressureLevel.WARNING),
        (8, PressureLevel.CRITICAL),
    ],
)
def test_pressure_level_is_the_number_of_the_kernel(number, level):
    assert memory.pressure_level(platform="darwin", library=MacLibrary(number)) is level


def test_other_systems_have_no_pressure_level():
    assert memory.pressure_level(platform="linux", library=MacLibrary(4)) is None


def test_footprint_on_macos_is_that_of_the_kernel():
    library = MacLibrary(footprint=5 * 10**9)

    assert 5 * 10**9 == memory.footprint(os.getpid(), platform="darwin", library=library)
    assert 0 == memory.footprint(os.getpid() + 1, platform="darwin", library=library)


def test_footprint_elsewhere_is_the_resident_memory():
    assert memory.footprint(os.getpid(), platform="linux") == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert 0 == memory.footprint(2**22 + 1, platform="linux")


@pytest.mark.skipif(sys.platform != "linux", reason="requires Linux")
def test_freed_memory_is_released_on_linux():
    # Smaller than what the C library of Linux returns by itself, and followed by memory in use.
    blocks = [bytearray(100_000) for _ in range(1000)]
    del blocks[:-1]
    kept = psutil.Process().memory_info().rss

    memory.release_free_memory()

    assert psutil.Process().memory_info().rss < kept - 50_000_000


def test_other_c_libraries_are_left_alone():
    memory.release_free_memory(platform="linux", library=object())
    memory.release_free_memory(platform="darwin", library=object())


@pytest.mark.skipif(sys.platform != "darwin", reason="requires macOS")
def test_this_mac_reports_pressure_and_footprints():
    assert memory.pressure_level() in PressureLevel
    assert memory.footprint(os.getpid()) > 10**6
