import json
import math

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.rope_utils import Llama3RoPE

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker import tensor_file

from .gguf_writer import TinyLlama, decode, write_gguf

PROMPT = mx.array([[4, 90, 30, 200, 7, 7, 91, 150]])


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def reference(tiny, **overrides):
    """Return mlx_lm's Llama with the parameters that the file was written from."""
    args = {
        "model_type": "llama",
        "hidden_size": tiny.hidden,
        "num_hidden_layers": tiny.layers,
        "intermediate_size": tiny.inner,
        "num_attention_heads": tiny.heads,
        "num_key_value_heads": tiny.kv_heads,
        "head_dim": tiny.head_dim,
        "rms_norm_eps": 1e-5,
        "vocab_size": tiny.vocabulary,
        "tie_word_embeddings": "lm_head.weight" not in tiny.parameters,
    }
    model = llama.Model(llama.ModelArgs.from_dict(args | overrides))
    parameters = {name: mx.array(values) for name, values in tiny.parameters.items()}
    missing = {name: mx.zeros_like(value) for name, value in tree_flatten(model.parameters()) if name not in parameters}
    model.load_weights(list((parameters | missing).items()))
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_an_unquantized_model_matches_its_original(tmp_path, convert, tied):
    """Fails if the permutation of query and key rows is not undone."""
    tiny = TinyLlama(tied=tied)

    model, _ = mlx_lm.load(str(convert(tiny.write(tmp_path / "x.gguf"))))

    logits = model(PROMPT)
    assert logits.dtype == mx.float32
    assert mx.allclose(logits, reference(tiny)(PROMPT), rtol=1e-5, atol=1e-5)


def test_attention_biases_are_kept_and_missing_ones_are_zero(tmp_path, convert):
    tiny = TinyLlama(biases=True)

    model, _ = mlx_lm.load(str(convert(tiny.write(tmp_path / "x.gguf"))))

    assert mx.allclose(model(PROMPT), reference(tiny, attention_bias=True)(PROMPT), rtol=1e-5, atol=1e-5)
    assert not model.model.layers[0].self_attn.o_proj.bias.any()


def test_linearly_scaled_positions_are_kept(tmp_path, convert, tiny):
    scaled = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}

    folder = convert(tiny.write(tmp_path / "x.gguf", metadata=scaled))

    model, _ = mlx_lm.load(str(folder))
    expected = reference(tiny, rope_scaling={"type": "linear", "factor": 4.0})(PROMPT)
    assert mx.allclose(model(PROMPT), expected, rtol=1e-5, atol=1e-5)
    assert not mx.allclose(model(PROMPT), reference(tiny)(PROMPT), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16"])
def test_each_type_is_converted_without_loss(tmp_path, convert, tiny, kind):
    loaded = mx.load(str(convert(tiny.write(tmp_path / "x.gguf", kind)) / "model.safetensors"))

    for name, values in tiny.parameters.items():
        if values.ndim == 1 or kind == "F16":
            assert loaded[name].dtype == mx.float16
            assert np.array_equal(np.array(loaded[name]), values.astype(np.float16))
            continue
        module = name.removesuffix(".weight")
        scales, biases = (loaded[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
        bits = 8 if kind == "Q8_0" else 4
        dequantized = mx.dequantize(loaded[name], scales, biases, group_size=32, bits=bits)
        # Permuting rows does not change the blocks within them.
        assert np.allclose(np.array(dequantized), decode(kind, values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "F32"])
def test_weights_match_those_that_mlx_reads(tmp_path, convert, tiny, kind):
    path = tiny.write(tmp_path / "x.gguf", kind)
    imported = mx.load(str(convert(path) / "model.safetensors"))
    expected_weights = mx.load(str(path))

    for target, source in tiny.names.items():
        if "q_proj" in target or "k_proj" in target:
            continue
        for part in ("weight", "scales", "biases"):
            name = source.removesuffix("weight") + part
            if name in expected_weights:
                expected = expected_weights[name].astype(imported[target.removesuffix("weight") + part].dtype)
                assert mx.array_equal(imported[target.removesuffix("weight") + part], expected)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_quantized_model_matches_its_dequantized_original(tmp_path, convert, tiny, kind):
    folder = convert(tiny.write(tmp_path / "x.gguf", kind))
    tiny.parameters = {
        name: decode(kind if values.ndim == 2 else "F16", values).astype(np.float32)
        for name, values in tiny.parameters.items()
    }

    model, _ = mlx_lm.load(str(folder))

    model.set_dtype(mx.float32)
    assert mx.allclose(model(PROMPT), reference(tiny)(PROMPT), rtol=1e-4, atol=1e-4)


def test_mixed_types_are_declared_per_layer(tmp_path, convert, tiny):
    kinds = {"token_embd_weight": "Q8_0", "output_weight": "F16", "blk_1_ffn_up_weight": "Q8_0"}

    folder = convert(tiny.write(tmp_path / "x.gguf", "Q4_0", kinds=kinds))

    eight_bits = {"group_size": 32, "bits": 8, "mode": "affine"}
    assert read_config(folder)["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": eight_bits,
        "model.layers.1.mlp.up_proj": eight_bits,
        "lm_head": False,
    }
    model, _ = mlx_lm.load(str(folder))
    assert model.model.layers[1].mlp.up_proj.bits == 8
    assert model.model.layers[0].mlp.up_proj.bits == 4


def test_the_mixed_types_of_a_real_file_are_kept(smollm):
    assert read_config(smollm)["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"},
    }


def test_an_unquantized_model_has_no_quantization(tmp_path, convert, tiny):
    assert "quantization" not in read_config(convert(tiny.write(tmp_path / "x.gguf", "F16")))


def test_the_config_matches_the_metadata(tmp_path, convert, tiny):
    config = read_config(convert(tiny.write(tmp_path / "x.gguf", metadata={"llama.rope.freq_base": 500000.0})))

    assert config["model_type"] == "llama"
    assert config["max_position_embeddings"] == 128
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == 500000
    assert config["vocab_size"] == tiny.vocabulary
    assert config["tie_word_embeddings"] is False
    assert (config["head_dim"], config["num_key_value_heads"]) == (16, 2)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, [2, 0])


def test_other_alignments_are_supported(tmp_path, convert, tiny):
    path = tiny.write(tmp_path / "x.gguf", metadata={"general.alignment": 128}, alignment=128)

    model, _ = mlx_lm.load(str(convert(path)))

    assert mx.allclose(model(PROMPT), reference(tiny)(PROMPT), rtol=1e-5, atol=1e-5)


def test_a_large_model_is_written_in_shards_with_an_index(tmp_path, convert, tiny, monkeypatch):
    monkeypatch.setattr(tensor_file, "MAX_SHARD_BYTES", 60_000)

    folder = convert(tiny.write(tmp_path / "x.gguf", "Q8_0"))

    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert len(shards) > 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == sum(
        value.nbytes for f in shards for value in mx.load(folder / f).values()
    )
    model, _ = mlx_lm.load(str(folder))
    assert mx.isfinite(model(PROMPT)).all()


# RoPE frequency factors


def llama3_factors(head_dim, base, factor, low, high, context):
    """Return the factors that llama.cpp's converter computes."""
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * base ** (index / head_dim)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            weight = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - weight) / factor + weight))
    return np.array(factors, dtype=np.float32)


class LongLlama(TinyLlama):
    head_dim = 64


@pytest.mark.parametrize(
    ("factor", "low", "high", "context"),
    [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 1.0, 3.0, 2048), (16.0, 2.0, 8.0, 16384)],
)
def test_llama3_scaling_is_recovered_from_the_frequency_factors(tmp_path, convert, factor, low, high, context):
    factors = llama3_factors(64, 500000.0, factor, low, high, context)
    tiny = LongLlama()
    metadata = tiny.metadata(**{"llama.rope.freq_base": 500000.0, "llama.attention.key_length": 64})
    path = write_gguf(tmp_path / "x.gguf", metadata, tiny.tensors() | {"rope_freqs.weight": ("F32", factors)})

    config = read_config(convert(path))

    scaling = config["rope_scaling"]
    assert scaling["rope_type"] == "llama3"
    assert scaling["factor"] == factor
    # Only the ratio matters: halving both the context and the frequency factors yields the same scaling.
    assert scaling["original_max_position_embeddings"] == context / low
    rope = Llama3RoPE(64, base=500000.0, scaling_config=scaling)
    assert np.allclose(np.array(rope._freqs), 500000.0 ** (np.arange(0, 64, 2) / 64) * factors, rtol=1e-4)


def test_frequency_factors_of_one_mean_no_scaling(tmp_path, convert, tiny):
    tensors = tiny.tensors() | {"rope_freqs.weight": ("F32", np.ones(8))}

    assert "rope_scaling" not in read_config(convert(write_gguf(tmp_path / "x.gguf", tiny.metadata(), tensors)))


# Rejected files


def error_of(convert, path):
    with pytest.raises(ImportFailed) as caught:
        convert(path)
    assert caught.value.message.startswith(f"{path.name}: ")
    return caught.value.message


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"general.architecture": "mllama"}, 'architecture "mllama" is Ollama\'s own format'),
        ({"general.architecture": "rwkv6"}, 'architecture "rwkv6" is not supported; supported: cohere2, command-r, '),
        ({"general.type": "adapter"}, 'contains a "adapter"'),
        ({"split.count": 3}, "it is one of 3 parts; import the first one"),
        ({"llama.expert_count": 8}, '"llama.expert_used_count" is missing'),
        ({"llama.logit_scale": 0.5}, '"llama.logit_scale" has the unsupported value 0.5'),
        ({"llama.rope.scaling.type": "ntk"}, 'RoPE scaling "ntk" is unknown; known: none, '),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": -1.0}, "scaling factor is -1.0"),
        ({"llama.rope.dimension_count": 8}, '"llama.rope.dimension_count" must be 16'),
        ({"llama.attention.value_length": 8}, '"llama.attention.value_length" is not 16'),
        ({"llama.attention.key_length": 32}, '"llama.rope.dimension_count" must be 32'),
        ({"llama.attention.head_count_kv": 3}, "are invalid"),
        ({"llama.attention.head_count": 0}, '"llama.attention.head_count" is 0'),
        ({"llama.attention.head_count": [4, 2]}, '"llama.attention.head_count" is not one integer'),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "not a finite number"),
        ({"llama.block_count": 4_000_000_000}, '"llama.block_count" is 4000000000, but must be'),
        ({"llama.block_count": 4_000_000}, "declares 4000000 layers"),
        ({"llama.block_count": 3}, 'tensor "blk.2.attn_q.weight" is missing'),
        ({"llama.block_count": 1}, 'unexpected tensor "blk.1.attn_k.weight"'),
        (
            {"llama.feed_forward_length": 128},
            '"blk.0.ffn_gate.weight" has the shape [96, 64], but the metadata implies [128, 64]',
        ),
        ({"llama.context_length": "long"}, '"llama.context_length" is not one integer'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_metadata_is_rejected(tmp_path, convert, tiny, metadata, reason):
    assert reason in error_of(convert, tiny.write(tmp_path / "x.gguf", metadata=metadata))


@pytest.mark.parametrize("key", ["general.architecture", "llama.block_count", "llama.attention.head_count"])
def test_missing_metadata_is_reported(tmp_path, convert, tiny, key):
    metadata = {name: value for name, value in tiny.metadata().items() if name != key}

    assert f'the metadata key "{key}" is missing' in error_of(
        convert, write_gguf(tmp_path / "x.gguf", metadata, tiny.tensors())
    )


@pytest.mark.parametrize("name", ["token_embd.weight", "output_norm.weight", "blk.1.attn_v.weight"])
def test_a_missing_tensor_is_named(tmp_path, convert, tiny, name):
    tensors = tiny.tensors()
    del tensors[name]

    reason = error_of(convert, write_gguf(tmp_path / "x.gguf", tiny.metadata(), tensors))

    assert reason == f'x.gguf: the tensor "{name}" is missing'


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blk.0.attn_q_norm.weight", 'unexpected tensor "blk.0.attn_q_norm.weight"'),
        ("blk.0.ffn_up_exps.weight", 'tensor "blk.0.ffn_up_exps.weight" in a model of the family Llama, Mistral'),
        ("rope_freqs.weight", "does not match the RoPE scaling of Llama 3"),
    ],
)
def test_an_unknown_tensor_is_reported(tmp_path, convert, tiny, name, reason):
    tensors = tiny.tensors() | {name: ("F32", np.arange(1, 9))}

    assert reason in error_of(convert, write_gguf(tmp_path / "x.gguf", tiny.metadata(), tensors))


def test_a_tensor_of_integers_is_reported(tmp_path, convert, tiny):
    tensors = tiny.tensors() | {"output_norm.weight": ("I8", np.ones(64))}

    reason = error_of(convert, write_gguf(tmp_path / "x.gguf", tiny.metadata(), tensors))

    assert reason == 'x.gguf: tensor "output_norm.weight" has the type I8, which is not supported'


@pytest.mark.parametrize("number", [math.nan, math.inf, 1e6])
def test_non_finite_values_are_rejected(tmp_path, convert, tiny, number):
    """A file with F16 matrices is stored as F16 throughout."""
    tiny.parameters["model.norm.weight"][3] = number

    reason = error_of(convert, tiny.write(tmp_path / "x.gguf", "F16"))

    assert 'tensor "output_norm.weight" has a value that is not finite or exceeds' in reason
