"""Finding a fast BLAS for workers: on Linux, MLX's CPU backend ships a reference one that is many times slower."""

import sys
from pathlib import Path

from osaurusd.errors import ConfigError

_PLACES = (
    "lib/*/openblas-pthread/libopenblas.so.0",  # Debian, Ubuntu
    "lib/*/libopenblas.so.0",
    "lib64/libopenblasp.so.0",  # Fedora
    "lib64/libopenblas.so.0",  # openSUSE
    "lib/libopenblas.so.0",  # Arch
)


def find(setting: str, *, platform: str = sys.platform, root: Path = Path("/usr")) -> Path | None:
    """The library to preload into workers for the config value `worker.blas`, or None for none.

    Raises:
        ConfigError: the setting is a path that does not exist.
    """
    if setting == "none" or not platform.startswith("linux"):
        return None
    if setting != "auto":
        path = Path(setting).expanduser()
        if not path.is_file():
            raise ConfigError(f"`worker.blas`: there is no file {path}", param="worker.blas")
        return path
    return next((found for place in _PLACES for found in sorted(root.glob(place))), None)
