"""The pool's settings, derived from the configuration and this machine."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from osaurusd.config import BUDGET_FRACTION, Config
from osaurusd.errors import ConfigError
from osaurusd.log import get_logger
from osaurusd.models.record import ModelRecord
from osaurusd.pool.state import SchedulerConfig
from osaurusd.rpc.messages import WireSetting
from osaurusd.rpc.process import Launch

log = get_logger(__name__)

# Defaults as fractions of the machine's memory: the parts of one worker.
FREED_BUFFERS_FRACTION = 0.05
PREFIX_CACHE_FRACTION = 0.125

# MLX's CPU backend on Linux links a reference BLAS that is many times slower than OpenBLAS.
_OPENBLAS_PATTERNS = (
    "lib/*/openblas-pthread/libopenblas.so.0",  # Debian, Ubuntu
    "lib/*/libopenblas.so.0",
    "lib64/libopenblasp.so.0",  # Fedora
    "lib64/libopenblas.so.0",  # openSUSE
    "lib/libopenblas.so.0",  # Arch
)

# What OpenBLAS calls the processors that introduced these instructions, newest first.
_BLAS_CORES = {
    "SkylakeX": {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"},
    "Haswell": {"avx2", "fma"},
}


class WorkerLimits(msgspec.Struct, frozen=True):
    """Limits of each worker, however much memory is free; see `messages.Load`."""

    dequantize: Literal["auto", "always", "never"] = "auto"
    cache_limit_bytes: int = 2**30
    prefix_cache_bytes: int = 0
    max_waiting: int = 64
    stall_seconds: float = 0.2
    feature_cache_bytes: int = 0
    max_image_pixels: int = 64_000_000
    wire: WireSetting = "auto"


class KeepAlive(msgspec.Struct, frozen=True):
    """Seconds until an idle model is unloaded: a default, and values by name, alias or repo. Negative means never."""

    default: float = -1.0
    by_model: Mapping[str, float] = msgspec.field(default_factory=dict)

    def for_model(self, record: ModelRecord) -> float | None:
        """Return the keep-alive of a model; None means never."""
        names = (record.name, record.repo.lower(), *record.aliases)
        seconds = next((value for name, value in self.by_model.items() if name.lower() in names), self.default)
        return negative_to_none(seconds)


def negative_to_none(seconds: float) -> float | None:
    """Convert a keep-alive to the scheduler's form, in which None means never."""
    return None if seconds < 0 else seconds


class PoolConfig(msgspec.Struct, frozen=True):
    """Settings of the pool; a standby worker is kept for `standby_seconds` after a load, 0 keeps none."""

    launch: Launch = msgspec.field(default_factory=Launch)
    limits: WorkerLimits = msgspec.field(default_factory=WorkerLimits)
    scheduler: SchedulerConfig = msgspec.field(default_factory=SchedulerConfig)
    keep_alive: KeepAlive = msgspec.field(default_factory=KeepAlive)
    standby_seconds: float = 0.0

    @classmethod
    def from_config(cls, config: Config) -> "PoolConfig":
        """Apply the configuration to this machine.

        Raises:
            ConfigError: a configured library does not exist.
        """
        physical = psutil.virtual_memory().total
        worker, residency = config.worker, config.residency
        prefix_cache = worker.prefix_cache_bytes
        return cls(
            launch=_launch(config),
            limits=WorkerLimits(
                dequantize=worker.dequantize,
                cache_limit_bytes=int(physical * FREED_BUFFERS_FRACTION),
                prefix_cache_bytes=int(physical * PREFIX_CACHE_FRACTION) if prefix_cache is None else prefix_cache,
                max_waiting=worker.max_waiting,
                stall_seconds=worker.stall_seconds,
                feature_cache_bytes=config.vision.feature_cache_bytes,
                max_image_pixels=config.vision.max_image_pixels,
                wire=worker.wire,
            ),
            scheduler=SchedulerConfig(
                budget_bytes=residency.budget_bytes or int(physical * BUDGET_FRACTION),
                max_waiting=worker.max_waiting,
                wait_seconds=residency.wait_seconds,
                min_residency_seconds=residency.min_residency_seconds,
            ),
            keep_alive=KeepAlive(residency.keep_alive_seconds, residency.keep_alive_by_model),
            standby_seconds=residency.standby_seconds,
        )


def find_blas(setting: str, *, platform: str = sys.platform, root: Path = Path("/usr")) -> Path | None:
    """Return the library to preload into workers for the value of `worker.blas`, or None.

    Raises:
        ConfigError: the value is a path that does not exist.
    """
    if setting == "none" or not platform.startswith("linux"):
        return None
    if setting != "auto":
        path = Path(setting).expanduser()
        if not path.is_file():
            raise ConfigError(f"`worker.blas`: file {path} does not exist", param="worker.blas")
        return path
    return next((path for pattern in _OPENBLAS_PATTERNS for path in sorted(root.glob(pattern))), None)


def find_blas_core(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the processor type of OpenBLAS for the vector instructions of this x86 processor; None if unknown.

    Older versions of OpenBLAS use instructions from 2004 on processors that are newer than they are, several times
    slower.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    return next((core for core, needed in _BLAS_CORES.items() if needed <= flags), None)


def _launch(config: Config) -> Launch:
    preload = find_blas(config.worker.blas)
    core = find_blas_core() if preload else None
    log.info("BLAS for workers", preloaded=str(preload) if preload else None, core=core)
    return Launch(
        preload=preload,
        blas_core=core,
        load_timeout=config.worker.load_timeout_seconds,
        stop_grace=config.worker.stop_grace_seconds,
        hang_timeout=config.residency.hang_seconds,
    )
