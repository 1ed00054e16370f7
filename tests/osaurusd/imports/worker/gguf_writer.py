"""Writer of small GGUF files, implemented independently of the code under test."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "I8": 24}


def write_gguf(path, metadata, tensors, *, version=3, magic=b"GGUF", alignment=32):
    """Write a GGUF file and return its path.

    Args:
        metadata: integers, floats, booleans, strings, or lists of these, by key.
        tensors: (type, float array) by name.
    """
    bodies = {name: encode(kind, array) for name, (kind, array) in tensors.items()}
    head = magic + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(_string(key) + _typed(value) for key, value in metadata.items())
    offset = 0
    for name, (kind, array) in tensors.items():
        head += _string(name) + struct.pack("<I", array.ndim)
        head += struct.pack(f"<{array.ndim}Q", *array.shape[::-1]) + struct.pack("<IQ", TYPES[kind], offset)
        offset += _padded(len(bodies[name]), alignment)
    data = b"".join(body.ljust(_padded(len(body), alignment), b"\0") for body in bodies.values())
    path.write_bytes(head.ljust(_padded(len(head), alignment), b"\0") + data)
    return path


def _padded(size, alignment):
    return (size + alignment - 1) // alignment * alignment


def _string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value):
    kind, body = _value(value)
    return struct.pack("<I", kind) + body


def _value(value: Any) -> tuple[int, bytes]:
    match value:
        case bool():
            return 7, struct.pack("<B", value)
        case int():
            return (5, struct.pack("<i", value)) if value < 0 else (4, struct.pack("<I", value))
        case float():
            return 6, struct.pack("<f", value)
        case str() | bytes():
            return 8, _string(value)
        case list():
            items = [_value(item) for item in value]
            return 9, struct.pack("<IQ", items[0][0], len(items)) + b"".join(body for _, body in items)
    raise TypeError(value)


def encode(kind, array):
    """Return the bytes of `array` as the ggml type `kind`, quantized in blocks of 32 values."""
    if kind == "F32":
        return array.astype("<f4").tobytes()
    if kind == "F16":
        return array.astype("<f2").tobytes()
    if kind == "I8":
        return array.astype("i1").tobytes()
    return b"".join(_block(kind, block) for block in array.reshape(-1, 32).astype(np.float64))


def _block(kind, block):
    if kind == "Q8_0":
        scale = np.float16(np.abs(block).max() / 127)
        return scale.tobytes() + np.clip(np.round(block / scale), -128, 127).astype(np.int8).tobytes()
    if kind == "Q4_0":
        scale = np.float16(np.abs(block).max() / 7)
        quants = np.clip(np.round(block / scale) + 8, 0, 15).astype(np.uint8)
        return scale.tobytes() + _halves(quants)
    low = np.float16(block.min())
    scale = np.float16((block.max() - block.min()) / 15)
    quants = np.clip(np.round((block - low) / scale), 0, 15).astype(np.uint8)
    return scale.tobytes() + low.tobytes() + _halves(quants)


def _halves(quants):
    return bytes(int(quants[i]) | int(quants[i + 16]) << 4 for i in range(16))


def decode(kind, array):
    """Return `array` after quantization and dequantization by ggml's rules, as float64."""
    data = encode(kind, array)
    if kind in ("F32", "F16"):
        return np.frombuffer(data, "<f4" if kind == "F32" else "<f2").reshape(array.shape).astype(np.float64)
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    return np.array([_unblock(kind, data[i : i + size]) for i in range(0, len(data), size)]).reshape(array.shape)


def _unblock(kind, block):
    scale = float(np.frombuffer(block[:2], "<f2")[0])
    if kind == "Q8_0":
        return [scale * weight for weight in struct.unpack("<32b", block[2:])]
    body = block[-16:]
    quants = [byte & 15 for byte in body] + [byte >> 4 for byte in body]
    if kind == "Q4_0":
        return [scale * (quant - 8) for quant in quants]
    low = float(np.frombuffer(block[2:4], "<f2")[0])
    return [scale * quant + low for quant in quants]


def byte_characters():
    """Return GPT-2's character for each byte value."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def byte_level_tokenizer(pre="smollm", **overrides):
    """Return metadata of a byte-level vocabulary: three control tokens, a user-defined one, 256 bytes, a few merges."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "Ċ Ċ"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>", *byte_characters().values()]
    tokens += [merge.replace(" ", "") for merge in merges]
    keys = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3, 3, 3, 4] + [1] * (len(tokens) - 4),
        "merges": merges,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (keys | overrides).items()}


def sentence_piece_tokenizer(**overrides):
    """Return metadata of a SentencePiece vocabulary: Llama 1's special tokens, the bytes, and pieces with scores."""
    pieces = ["▁", "h", "e", "l", "o", "w", "he", "ll", "hell", "hello", "▁hello", "▁w", "<|end|>", "<tool>"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    keys = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 259 + [-float(rank) for rank in range(len(pieces))],
        "token_type": [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 2) + [3, 4],
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (keys | overrides).items()}


class TinyLlama:
    """A random two-layer Llama: its parameters by mlx_lm's names, and as the tensors of a GGUF file."""

    hidden, inner, heads, kv_heads, head_dim, layers = 64, 96, 4, 2, 16, 2

    def __init__(self, tokenizer=None, *, tied=False, biases=False, seed=0):
        self.tokenizer = byte_level_tokenizer() if tokenizer is None else tokenizer
        self.vocabulary = len(self.tokenizer["tokenizer.ggml.tokens"])
        self._random = np.random.default_rng(seed)
        self.names = {}
        self.parameters = {}
        self._add("model.embed_tokens.weight", "token_embd.weight", self.vocabulary, self.hidden)
        for layer in range(self.layers):
            self._add_layer(f"model.layers.{layer}", f"blk.{layer}", biases)
        self._add("model.norm.weight", "output_norm.weight", self.hidden)
        if not tied:
            self._add("lm_head.weight", "output.weight", self.vocabulary, self.hidden)

    def _add(self, target, source, *shape):
        values = self._random.normal(size=shape) * 0.2 + (len(shape) == 1)
        self.parameters[target] = values.astype(np.float32)
        self.names[target] = source

    def _add_layer(self, target, source, biases):
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self._add(f"{target}.input_layernorm.weight", f"{source}.attn_norm.weight", self.hidden)
        self._add(f"{target}.post_attention_layernorm.weight", f"{source}.ffn_norm.weight", self.hidden)
        for module, part, rows, columns in (
            ("self_attn.q_proj", "attn_q", query, self.hidden),
            ("self_attn.k_proj", "attn_k", key, self.hidden),
            ("self_attn.v_proj", "attn_v", key, self.hidden),
            ("self_attn.o_proj", "attn_output", self.hidden, query),
            ("mlp.gate_proj", "ffn_gate", self.inner, self.hidden),
            ("mlp.up_proj", "ffn_up", self.inner, self.hidden),
            ("mlp.down_proj", "ffn_down", self.hidden, self.inner),
        ):
            self._add(f"{target}.{module}.weight", f"{source}.{part}.weight", rows, columns)
            # Llama variants with biases have them only on the query, key and value projections.
            if biases and part in ("attn_q", "attn_k", "attn_v"):
                self._add(f"{target}.{module}.bias", f"{source}.{part}.bias", rows)

    def metadata(self, **overrides):
        keys = {
            "general.architecture": "llama",
            "llama.context_length": 128,
            "llama.embedding_length": self.hidden,
            "llama.block_count": self.layers,
            "llama.feed_forward_length": self.inner,
            "llama.attention.head_count": self.heads,
            "llama.attention.head_count_kv": self.kv_heads,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.dimension_count": self.head_dim,
            "llama.rope.freq_base": 10000.0,
        }
        return keys | self.tokenizer | overrides

    def tensors(self, kind="F32", **kinds):
        """Return matrices as `kind` and vectors as F32.

        Args:
            kind: the ggml type of the matrices.
            kinds: types of single matrices by their GGUF name with underscores, such as `output_weight`.
        """
        tensors = {}
        for target, source in self.names.items():
            values = self.permuted(target)
            tensors[source] = (kinds.get(source.replace(".", "_"), kind) if values.ndim == 2 else "F32", values)
        return tensors

    def permuted(self, target):
        """Return a parameter with its rows in the order of llama.cpp's converter."""
        heads = {"q_proj": self.heads, "k_proj": self.kv_heads}.get(target.split(".")[-2], 0)
        values = self.parameters[target]
        if not heads:
            return values
        shape = (heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)

    def write(self, path: Path, kind="F32", *, kinds=None, metadata=None, **layout):
        return write_gguf(path, self.metadata(**(metadata or {})), self.tensors(kind, **(kinds or {})), **layout)
