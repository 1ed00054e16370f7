"""The environment of child processes that work on models: what they need, and no secrets."""

import os
import re
from collections.abc import Mapping

_NAMES = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP", "VIRTUAL_ENV"}
    | {"LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}
)
# Locales, Python, and tuning variables of compute libraries. macOS sets `__CF_USER_TEXT_ENCODING`.
_PATTERN = re.compile(
    r"(LC|__CF|PYTHON|COVERAGE|DYLD|MALLOC|MLX|MTL|METAL|CUDA|NVIDIA|OMP|GOMP|KMP|MKL|OPENBLAS|GOTO|BLIS|VECLIB|RAYON"
    r"|TOKENIZERS|TRANSFORMERS|LLGUIDANCE)_\w+|PYTHON[A-Z]+"
)

_FOR_NUMPY = {
    # glibc returns large arrays to the system when they are freed, and each page of a new one then costs a page fault,
    # several times as much as computing its content. Other systems ignore these variables.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    # A conversion multiplies no matrices. The threads for that would take 0.1 s of each core when NumPy is imported.
    "OPENBLAS_NUM_THREADS": "1",
}


def minimal(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that a process which reads models may see: no tokens, keys or proxies.

    This is an allow list, because no list of secrets can be complete.
    """
    return {name: value for name, value in env.items() if name in _NAMES or _PATTERN.fullmatch(name)}


def converting(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables for a process that converts weights with NumPy: the minimal ones, and those that speed it up."""
    return _FOR_NUMPY | minimal(env)
