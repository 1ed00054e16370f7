"""Checks of an NVIDIA GPU on Linux: whether MLX can use it, and which package it needs."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from osaurusctl.doctor.check import Check, Context, failure, ok, warning

_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader")
_TIMEOUT_SECONDS = 10.0

# The requirements of MLX: https://ml-explore.github.io/mlx/build/html/install.html
_MIN_COMPUTE_CAPABILITY = (7, 5)
_MIN_DRIVERS = {"cuda13": (580,), "cuda12": (550, 54, 14)}
"""The oldest driver for each extra of osaurusd, the newest CUDA first."""

_PACKAGES = {"cuda13": "mlx-cuda-13", "cuda12": "mlx-cuda-12"}
_LIBRARY = "mlx/lib/libmlx.so"


class Gpu(NamedTuple):
    """A GPU as `nvidia-smi` reports it."""

    name: str
    driver: str
    compute_capability: str

    @property
    def extra(self) -> str | None:
        """The extra of osaurusd for this GPU; None if MLX does not support it."""
        if _numbers(self.compute_capability) < _MIN_COMPUTE_CAPABILITY:
            return None
        return next((extra for extra, oldest in _MIN_DRIVERS.items() if _numbers(self.driver) >= oldest), None)


def check_gpu(_: Context) -> Iterator[Check]:
    """Check that MLX uses the NVIDIA GPU of this machine."""
    if not sys.platform.startswith("linux") or (gpu := find_gpu()) is None:
        return
    detail = f"{gpu.name}, driver {gpu.driver}, compute capability {gpu.compute_capability}"
    installed = next((extra for extra, package in _PACKAGES.items() if _version(package)), None)
    if gpu.extra is None:
        fix = "MLX requires driver 550.54.14 and compute capability 7.5, or newer; update the driver"
        yield warning("GPU", f"{detail}: not supported, models run on the CPU", fix)
    elif installed is None:
        fix = f'run "{_install_command()} \'osaurusd[{gpu.extra}]\'", then "osaurusctl doctor" again'
        yield warning("GPU", f"{detail}: not used, because MLX is installed without CUDA", fix)
    elif not provides_library(_PACKAGES[installed]):
        # Both packages contain the same file, and the one that was installed last has replaced that of the other.
        package = f"{_PACKAGES[installed]}=={_version(_PACKAGES[installed])}"
        fix = f'run "{_install_command()} --force-reinstall --no-deps {package}", then "osaurusctl restart"'
        yield failure("GPU", f"{detail}: not used, because mlx-cpu has replaced the library of CUDA", fix)
    elif _numbers(gpu.driver) < _MIN_DRIVERS[installed]:
        fix = f"run \"{_install_command()} 'osaurusd[{gpu.extra}]'\", or update the driver"
        yield failure("GPU", f"{detail}: the driver is too old for osaurusd[{installed}]", fix)
    else:
        yield ok("GPU", f"{detail}; MLX uses {_PACKAGES[installed]}")


def find_gpu() -> Gpu | None:
    """Return the first NVIDIA GPU, or None."""
    try:
        run = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match [field.strip() for field in run.stdout.partition("\n")[0].split(",")]:
        case [name, driver, compute_capability] if run.returncode == 0:
            return Gpu(name, driver, compute_capability)
    return None


def provides_library(package: str) -> bool:
    """Whether MLX's library on disk is the one of this package, as far as its size shows."""
    files = metadata.files(package) or []
    library = next((file for file in files if str(file) == _LIBRARY), None)
    try:
        return library is not None and library.locate().stat().st_size == library.size  # type: ignore[attr-defined]
    except OSError:
        return False


def _install_command() -> str:
    """Return the command that installs packages into this environment; those that uv creates have no pip."""
    return f"{sys.executable} -m pip install" if find_spec("pip") else f"uv pip install --python {sys.executable}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
