import pytest

from osaurusd.imports.worker.importer import import_model

from .gguf_writer import TinyLlama


@pytest.fixture(scope="session")
def smollm(smollm_folder):
    """The folder that SmolLM2, layers in Q4_1 and token embeddings in Q8_0, was imported into."""
    return smollm_folder


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
