"""The environment of processes that work on models: what they need, and no secrets."""

import os
import re
from collections.abc import Mapping

_NEEDED = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP", "VIRTUAL_ENV"}
    | {"LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}
)
# Locales, Python, and what tunes libraries that compute. `__CF_USER_TEXT_ENCODING` is macOS's.
_KINDS = re.compile(
    r"(LC|__CF|PYTHON|COVERAGE|DYLD|MALLOC|MLX|MTL|METAL|CUDA|NVIDIA|OMP|GOMP|KMP|MKL|OPENBLAS|GOTO|BLIS|VECLIB|RAYON"
    r"|TOKENIZERS|TRANSFORMERS|LLGUIDANCE)_\w+|PYTHON[A-Z]+"
)


def minimal(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of an environment, what a process that reads models may know: no tokens, keys or proxies.

    What is passed on is listed, for nobody can list what may be secret.
    """
    return {name: value for name, value in env.items() if name in _NEEDED or _KINDS.fullmatch(name)}
