"""Import the modules of libraries that an import needs, without what their packages import in addition.

The package `mlx_lm` imports transformers, and `gguf` imports what writes files: both take longer than converting a
small model. Must be imported before anything imports these packages.
"""

import importlib.util
import sys

_PACKAGES = ("gguf", "mlx_lm")


def _skip(package: str) -> None:
    """Let the modules of a package be imported without the package itself."""
    if (spec := importlib.util.find_spec(package)) is not None:
        # Created, but not executed.
        sys.modules.setdefault(package, importlib.util.module_from_spec(spec))


for name in _PACKAGES:
    _skip(name)
