import pytest


@pytest.fixture
def models(tmp_path):
    """The folder for imported models."""
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def hub(tmp_path):
    """A Hugging Face cache."""
    path = tmp_path / "hub"
    path.mkdir()
    return path
