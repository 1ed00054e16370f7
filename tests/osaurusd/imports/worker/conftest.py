import pytest

from osaurusd.imports.worker.importer import import_model

from .gguf_writer import TinyLlama


@pytest.fixture(scope="session")
def smollm(smollm_folder):
    """The imported SmolLM2, whose layers were Q4_1 and whose token embeddings were Q8_0."""
    return smollm_folder


@pytest.fixture
def dest(tmp_path):
    """An empty folder to import into."""
    folder = tmp_path / "dest"
    folder.mkdir()
    return folder


@pytest.fixture
def convert(dest):
    """Imports a file or folder into `dest` and returns `dest`."""

    def convert(source):
        import_model(source, dest, lambda stage, done, total: None)
        return dest

    return convert


@pytest.fixture
def tiny():
    """A random Llama with a byte-level tokenizer."""
    return TinyLlama()
