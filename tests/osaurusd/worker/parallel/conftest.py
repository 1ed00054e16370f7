import pytest

from tests.models import NO_END_TOKEN, make_tiny, split_files

SIZES = {
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "num_hidden_layers": 3,
    "tie_word_embeddings": False,
    "eos_token_id": NO_END_TOKEN,
}


@pytest.fixture(scope="session")
def make_folder(tiny_tokenizer, tmp_path_factory):
    """Creates a tiny random model of this kind."""

    def make_folder(kind, **config):
        return make_tiny(tmp_path_factory.mktemp(kind), tiny_tokenizer, model_type=kind, **{**SIZES, **config})

    return make_folder


@pytest.fixture(scope="session")
def llama_folder(make_folder):
    """A tiny random model that can be split by heads, among two or three ranks."""
    return make_folder("llama")


@pytest.fixture(scope="session")
def qwen2_folder(make_folder):
    """A tiny quantized random model that can be split by layers as well, with a file for each layer."""
    folder = make_folder(
        "qwen2", hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=4, group_size=32
    )
    split_files(folder)
    return folder
