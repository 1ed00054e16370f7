"""The shape of a model is read from its config and the headers of its weights."""

import json

import pytest

from osaurusd.errors import LoadFailed
from osaurusd.groups import facts
from osaurusd.groups.facts import HEADS_WIDTH, Part, layers_of
from tests.osaurusd.models import disk

CONFIG = {
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}


def weights(shapes):
    """Return the bytes of a safetensors file with float32 tensors of these shapes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    return disk.with_header(json.dumps(header).encode()) + bytes(end)


SHAPES = {
    "model.embed_tokens.weight": (10, 64),
    "model.layers.0.mlp.weight": (2, 64),
    "model.layers.1.mlp.weight": (3, 64),
    "model.layers.2.mtp.weight": (100, 64),
    "vision_tower.layers.0.weight": (50, 64),
}


def read(tmp_path, config=CONFIG, files=None):
    models = tmp_path / "models"
    content = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b"{}",
        "model.safetensors": weights(SHAPES),
    }
    disk.write(models / "m", content | (files or {}))
    (record,) = disk.scan(models, tmp_path / "hub")
    return facts.read_model(record)


def test_weights_are_counted_by_layer_without_other_towers_and_layers_for_further_tokens(tmp_path):
    model = read(tmp_path)

    assert (Part(2 * 64 * 4, 128), Part(3 * 64 * 4, 192)) == model.layers
    assert Part(10 * 64 * 4, 640) == model.shared


def test_sizes_are_those_that_a_tensor_split_divides(tmp_path):
    model = read(tmp_path)

    expected = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, HEADS_WIDTH: 64}
    assert expected == model.sizes
    assert 1 == model.group_size
    assert 2 * 2 * 2 * 16 * 2 == model.cache_bytes_per_token


def test_heads_for_keys_default_to_all_heads(tmp_path):
    config = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}
    assert 4 == read(tmp_path, config).sizes["num_key_value_heads"]


def test_sizes_of_a_nested_config_and_the_group_size_of_a_quantization_count(tmp_path):
    config = {"model_type": "llama", "text_config": CONFIG, "quantization": {"group_size": 32, "bits": 4}}
    model = read(tmp_path, config)

    assert (2, 32) == (len(model.layers), model.group_size)
    assert 4 == model.sizes["num_attention_heads"]


def test_damaged_config_is_an_error_that_names_the_model(tmp_path):
    models = tmp_path / "models"
    disk.write(models / "m", disk.model())
    (record,) = disk.scan(models, tmp_path / "hub")
    (models / "m" / "config.json").write_text("[]")
    with pytest.raises(LoadFailed, match=r'model "m": config\.json cannot be read'):
        facts.read_model(record)

    disk.write(models / "m", disk.model())
    (models / "m" / "model.safetensors").unlink()
    with pytest.raises(LoadFailed, match=r'model "m": no model\*.safetensors'):
        facts.read_model(record)


@pytest.mark.parametrize(
    ("tensors", "layers"),
    [
        (["model.layers.3.a", "model.layers.3.b", "model.layers.12.a"], (3, 12)),
        (["model.layers.3.a", "model.norm.weight"], None),
        (["lm_head.weight"], None),
        ([], None),
        (["language_model.model.layers.0.a"], (0,)),
    ],
)
def test_file_belongs_to_the_layers_of_its_tensors_unless_it_has_others(tensors, layers):
    assert layers == layers_of(tensors)
