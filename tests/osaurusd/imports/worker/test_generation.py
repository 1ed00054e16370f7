import json

import pytest

from osaurusd.errors import ImportFailed

from .gguf_writer import TinyLlama, byte_level_tokenizer, sentence_piece_tokenizer


@pytest.fixture
def defaults(tmp_path, convert):
    """Imports a file with additional metadata and returns its `generation_config.json`."""

    def defaults(vocabulary=None, **metadata):
        folder = convert(TinyLlama(vocabulary).write(tmp_path / "x.gguf", metadata=metadata))
        return json.loads((folder / "generation_config.json").read_text())

    return defaults


def test_smollm_has_both_end_tokens(smollm):
    config = json.loads((smollm / "generation_config.json").read_text())

    assert config == {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2}


def test_end_of_turn_and_end_of_message_tokens_end_an_output(defaults):
    vocabulary = byte_level_tokenizer(eot_token_id=5, eom_token_id=6)
    vocabulary["tokenizer.ggml.tokens"][0] = "<|pad|>"

    assert defaults(vocabulary)["eos_token_id"] == [2, 5, 6]


def test_end_of_message_does_not_end_an_output_of_gpt_oss(defaults):
    vocabulary = byte_level_tokenizer()
    vocabulary["tokenizer.ggml.tokens"][:3] = ["<|end|>", "<|call|>", "<|return|>"]

    assert defaults(vocabulary)["eos_token_id"] == [2, 1]


def test_a_single_end_token_is_not_a_list(defaults):
    config = defaults(sentence_piece_tokenizer(token_type=[2, 3, 3] + [6] * 256 + [1] * 14))

    assert config == {"bos_token_id": 1, "eos_token_id": 2}


def test_recommended_sampling_is_kept(defaults):
    config = defaults(
        **{
            "general.sampling.temp": 0.6,
            "general.sampling.top_p": 0.95,
            "general.sampling.top_k": 20,
            "general.sampling.min_p": 0.05,
            "general.sampling.penalty_repeat": 1.1,
        }
    )

    sampling = {key: value for key, value in config.items() if not key.endswith("_token_id")}
    assert sampling == {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
    }


def test_a_temperature_of_zero_disables_sampling(defaults):
    assert defaults(**{"general.sampling.temp": 0.0})["do_sample"] is False


def test_non_numeric_sampling_is_rejected(defaults):
    with pytest.raises(ImportFailed, match=r'"general\.sampling\.temp" is not a finite number'):
        defaults(**{"general.sampling.temp": "high"})
