"""Files as Ollama's converter writes them: its names, keys, layouts and tokens, for networks of `networks.py`."""

import dataclasses
import functools
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from . import blocks
from .gguf_writer import byte_level_tokenizer
from .networks import CASES, HEAD, HIDDEN, INNER, Network, write_file

_PAIRED_MXFP4 = 4


def case_of(model_type, layers, config):
    case = next(case for case in CASES if case.model_type == model_type)
    return dataclasses.replace(case, layers=layers, config={**case.config, **config})


@functools.cache
def _gemma3_network(scaled, pattern, kind):
    config = {
        "sliding_window_pattern": pattern,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "linear", "factor": 8.0} if scaled else None,
    }
    tokenizer = gemma_tokenizer()
    rows = len(tokenizer["tokenizer.ggml.tokens"]) - 1
    case = case_of("gemma3_text", 6, config)
    return Network(case, kind, tied=True, tokenizer=tokenizer, vocabulary=rows)


@functools.cache
def _gpt_oss_network():
    return Network(case_of("gpt_oss", 2, {}), Type.MXFP4, tokenizer=harmony_tokenizer(), other_kind=Type.BF16)


def gemma_tokenizer():
    """Return metadata like that of Ollama's Gemma 3. The last token has no embedding."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<table>", "<start_of_image>"]
    pieces = ["▁", "h", "e", "l", "o", "w", "he", "ll", "hell", "hello", "▁w", "\n", "<i", "<i>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*special, *bytes_, *pieces, "<image_soft_token>"]
    keys = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        # The first piece of SentencePiece has the score -0.
        "scores": [0.0] * (len(special) + 256) + [-float(rank) for rank in range(len(pieces))] + [-1000.0],
        "token_type": [3, 3, 3, 2, 1, 1, 1, 1] + [6] * 256 + [1] * len(pieces) + [4],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "padding_token_id": 0,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_padding_token": False,
        "add_unknown_token": False,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def _gemma3_keys(network, **others):
    return {
        "block_count": network.case.layers,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": 8,
        "attention.head_count_kv": 4,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.sliding_window": 4,
        **others,
    }


VISION_KEYS = {
    "vision.block_count": 1,
    "vision.embedding_length": 32,
    "vision.feed_forward_length": 64,
    "vision.image_size": 56,
    "vision.patch_size": 14,
    "vision.num_channels": 3,
    "vision.attention.head_count": 2,
    "vision.attention.layer_norm_epsilon": 1e-6,
    "mm.tokens_per_image": 4,
}


def vision_tensors():
    shapes = {
        "v.patch_embedding.weight": (32, 3, 14, 14),
        "v.position_embedding.weight": (16, 32),
        "v.blk.0.attn_q.weight": (32, 32),
        "v.blk.0.layer_norm1.weight": (32,),
        "v.post_layernorm.weight": (32,),
        "mm.mm_input_projection.weight": (32, HIDDEN),
        "mm.mm_soft_emb_norm.weight": (32,),
    }
    return {name: (blocks.encode(np.ones(shape, np.float32), Type.F32), Type.F32) for name, shape in shapes.items()}


class OllamaFile:
    """A network as one of Ollama's converters writes it.

    Attributes:
        architecture: the name in the file.
        network: what is written; files of the same variant may share it.
        metadata, tensors: what the file has.
    """

    def __init__(self, architecture, network, metadata, tensors):
        self.architecture = architecture
        self.network = network
        self.metadata = metadata
        self.tensors = tensors

    @property
    def kind(self):
        return self.network.kind

    @property
    def model(self):
        return self.network.model

    def write(self, path):
        return write_file(path, self.architecture, self.metadata, self.tensors)


class Gemma3(OllamaFile):
    """A network of Gemma 3 as one of Ollama's converters writes it.

    Attributes:
        variant: `vision`, like the models of 4B and more; `first`, like that of 1B; or `text`, by later converters.
    """

    def __init__(self, variant, kind=Type.Q8_0):
        network = _gemma3_network(variant == "vision", 3 if variant == "text" else 6, kind)
        tokenizer = network.tokenizer
        tensors = dict(network.tensors)
        keys = {"context_length": 131072, **VISION_KEYS}
        if variant == "vision":
            tensors |= vision_tensors()
        else:
            keys = {"context_length": 32768, "attention.layer_norm_rms_epsilon": 1e-6, "rope.local.freq_base": 1e4}
        if variant == "first":
            keys |= {"final_logit_softcapping": 30.0, "rope.global.freq_base": 1e6}
        if variant == "text":
            keys |= {"rope.freq_base": 1e6, "attention.sliding_window_pattern": [True, True, False] * 2}
            tokenizer = {**tokenizer, "tokenizer.ggml.eos_token_ids": [1, 5]}
        metadata = tokenizer | {f"gemma3.{key}": value for key, value in _gemma3_keys(network, **keys).items()}
        super().__init__("gemma3", network, metadata, tensors)


class Multimodal(OllamaFile):
    """A network of a family with an image encoder, under the architecture that Ollama has for both together."""

    def __init__(self, model_type, architecture, pre):
        case = next(case for case in CASES if case.model_type == model_type)
        network = Network(dataclasses.replace(case, config={}), Type.Q8_0, tokenizer=byte_level_tokenizer(pre))
        keys = {f"{architecture}.{key}": value for key, value in (network.keys() | VISION_KEYS).items()}
        super().__init__(architecture, network, keys | network.tokenizer, network.tensors | vision_tensors())


def harmony_tokenizer():
    names = ("startoftext", "endoftext", "return", "call", "end", "start", "message", "channel", "constrain")
    special = [f"<|{name}|>" for name in names]
    plain = byte_level_tokenizer("default")
    padding = ["[PAD0]", "[PAD1]"]
    tokens = special + plain["tokenizer.ggml.tokens"][4:] + padding
    ordinary = len(tokens) - len(special) - len(padding)
    return plain | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(special) + [1] * ordinary + [4] * len(padding),
        "tokenizer.ggml.scores": [float(index) for index in range(len(tokens))],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eos_token_ids": [1, 2, 3],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
    }


class GptOss(OllamaFile):
    """A network of GPT-OSS as one of Ollama's converters writes it.

    Attributes:
        variant: `fused`, the first one, from OpenAI's own files; `split`; or `renamed`, with llama.cpp's architecture.
    """

    def __init__(self, variant):
        self.variant = variant
        network = _gpt_oss_network()
        architecture = "gpt-oss" if variant == "renamed" else "gptoss"
        keys = {
            "context_length": 128,
            "block_count": 2,
            "embedding_length": HIDDEN,
            "feed_forward_length": INNER,
            "expert_count": 4,
            "expert_used_count": 2,
            "attention.head_count": 8,
            "attention.head_count_kv": 4,
            "attention.key_length": HEAD,
            "attention.value_length": HEAD,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.sliding_window": 4,
            "rope.freq_base": 10000.0,
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        }
        metadata = network.tokenizer | {f"{architecture}.{key}": value for key, value in keys.items()}
        tensors = {_ollama_name(name): tensor for name, tensor in network.tensors.items()}
        super().__init__(architecture, network, metadata, tensors)
        if variant == "fused":
            self._fuse()

    def _fuse(self):
        for layer in range(2):
            for leaf in ("weight", "bias"):
                parts = [self.tensors.pop(f"blk.{layer}.attn_{part}.{leaf}") for part in "qkv"]
                fused = np.concatenate([data for data, _ in parts])
                self.tensors[f"blk.{layer}.attn_qkv.{leaf}"] = (fused, parts[0][1])
                gate, up = (self.tensors.pop(f"blk.{layer}.ffn_{part}_exps.{leaf}") for part in ("gate", "up"))
                # The rows take turns; those of a bias are numbers.
                size = 4 if leaf == "bias" else gate[0].shape[-1]
                turns = [data.reshape(len(data), -1, 1, size) for data in (gate[0], up[0])]
                together = np.concatenate(turns, axis=2)
                shape = (len(together), -1) if leaf == "bias" else (len(together), 2 * INNER, size)
                self.tensors[f"blk.{layer}.ffn_gate_up_exps.{leaf}"] = (together.reshape(shape), gate[1])
        for name, (data, kind) in self.tensors.items():
            if kind == Type.MXFP4:
                self.tensors[name] = (_paired(data), kind)

    def write(self, path):
        super().write(path)
        if self.variant == "fused":
            for name, (data, kind) in self.tensors.items():
                if kind == Type.MXFP4:
                    set_type(path, name, data.ndim, _PAIRED_MXFP4)
        return path


def _ollama_name(name):
    for published, own in (
        ("attn_output.", "attn_out."),
        ("attn_sinks.weight", "attn_sinks"),
        ("post_attention_norm.", "ffn_norm."),
    ):
        name = name.replace(published, own)
    return name


def _paired(data):
    """Return MXFP4 blocks whose bytes hold neighbors, as OpenAI's files have them."""
    encoded = data.reshape(-1, gguf.GGML_QUANT_SIZES[Type.MXFP4][1])
    result = encoded.copy()
    for index in range(16):
        codes = [
            encoded[:, 1 + weight] & 15 if weight < 16 else encoded[:, 1 + weight - 16] >> 4
            for weight in (2 * index, 2 * index + 1)
        ]
        result[:, 1 + index] = codes[0] | codes[1] << 4
    return result.reshape(data.shape)


def set_type(path, name, dimensions, kind):
    """Change the number of a tensor's type in the header; the `gguf` package writes only those of ggml."""
    content = bytearray(path.read_bytes())
    entry = struct.pack("<Q", len(name)) + name.encode()
    start = content.index(entry) + len(entry) + 4 + 8 * dimensions
    content[start : start + 4] = struct.pack("<I", kind)
    path.write_bytes(content)
