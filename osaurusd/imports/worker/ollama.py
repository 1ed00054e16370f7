"""Files of Ollama's own converter, read as if llama.cpp's had written them.

Ollama's converter has names of tensors and keys of its own, leaves out settings that are the same for all models of a
family, stores image encoders beside text models, and leaves the chat template to Ollama's manifest. Its `convert/` and
`model/models/` are the reference.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files

from osaurusd.imports.worker import templates
from osaurusd.imports.worker.facts import EMBEDDING, Facts
from osaurusd.imports.worker.gguf import GgufHeader, Interleaving, TensorInfo
from osaurusd.imports.worker.metadata import Metadata, Value
from osaurusd.imports.worker.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from osaurusd.wire.errors import as_json

ENCODER_TENSORS = ("v.", "mm.")

# Keys that only Ollama's converter writes. It derives them from the names of the special tokens.
_OWN_KEYS = ("tokenizer.ggml.add_padding_token", "tokenizer.ggml.add_unknown_token", "tokenizer.ggml.eos_token_ids")

_TURN_TOKENS = ("<start_of_turn>", "<end_of_turn>")
_TAG = re.compile(r"<[^<>]+>")
_PADDING = re.compile(r"\[PAD\d+\]")

# The values of all models of Gemma 3, whose files lack them. Those of at least this context length scale RoPE.
_GEMMA3_DEFAULTS: dict[str, Value] = {
    "attention.key_length": 256,
    "attention.value_length": 256,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 1e4,
}
_GEMMA3_SCALING: dict[str, Value] = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
_GEMMA3_SCALED_CONTEXT = 131072
# Written by the first converter for models that have none.
_UNUSED_SOFTCAP = 30.0

_GPT_OSS_TENSORS = {
    "attn_out.weight": "attn_output.weight",
    "attn_out.bias": "attn_output.bias",
    "attn_sinks": "attn_sinks.weight",
    "ffn_norm.weight": "post_attention_norm.weight",
}
_LAYER_TENSOR = re.compile(r"(blk\.\d+)\.(.+)")


class _File:
    """The header of a file, to be changed.

    Attributes:
        values: the metadata.
        notes: what the user should know about the changes.
    """

    def __init__(self, header: GgufHeader) -> None:
        self._original = header
        self.values = dict(header.metadata.items())
        self.tensors = dict(header.tensors)
        self.notes: list[str] = []

    @property
    def header(self) -> GgufHeader:
        return GgufHeader(self._original.paths, self.metadata, self.tensors)

    @property
    def metadata(self) -> Metadata:
        return Metadata(self._original.metadata.file_name, self.values)

    @property
    def has_own_keys(self) -> bool:
        return any(key in self.values for key in _OWN_KEYS)

    def rename_architecture(self, new: str) -> None:
        if self.values["general.architecture"] == new:
            return
        old = f"{self.values['general.architecture']}."
        self.values["general.architecture"] = new
        for key in [key for key in self.values if key.startswith(old)]:
            self.rename_key(key, f"{new}.{key.removeprefix(old)}")

    def name_pre_tokenizer(self, name: str) -> None:
        """Name the pattern that all models of a family share, if the converter did not know it."""
        if self.values.get("tokenizer.ggml.pre") in (None, "", "default"):
            self.values["tokenizer.ggml.pre"] = name

    def rename_key(self, name: str, new: str) -> None:
        if name in self.values:
            self.values.setdefault(new, self.values[name])
            del self.values[name]

    def rename_tensor(self, name: str, new: str) -> None:
        """Rename a tensor. If both names exist, the old one remains, and is unexpected in the family."""
        if name in self.tensors and new not in self.tensors:
            self.tensors[new] = replace(self.tensors.pop(name), name=new)

    def replace_tensor(self, name: str, parts: dict[str, TensorInfo]) -> None:
        if repeated := sorted(self.tensors.keys() & parts.keys()):
            raise self.metadata.failure(f"the tensor {as_json(repeated[0])} is also a part of {as_json(name)}")
        del self.tensors[name]
        self.tensors |= parts

    def leave_out_encoder(self) -> None:
        """Remove the image encoder. Raises `ImportFailed` if nothing else remains."""
        encoder = [name for name in self.tensors if name.startswith(ENCODER_TENSORS)]
        if encoder and EMBEDDING not in self.tensors:
            raise self.metadata.failure("it contains an image encoder, but no text model")
        for name in encoder:
            del self.tensors[name]
        if encoder:
            self.notes.append("the image encoder is left out; the result accepts text only")

    def add_template(self, family: str, name: str) -> None:
        """Add the chat template of a family, if the file has none."""
        if "tokenizer.chat_template" not in self.values:
            self.values["tokenizer.chat_template"] = (files(templates) / f"{name}.jinja").read_text(encoding="utf-8")
            self.notes.append(f"the file has no chat template; a template for {family} is added")


def translate(header: GgufHeader) -> tuple[GgufHeader, list[str]]:
    """Return a header with the names, settings and tensors of llama.cpp's files, and what the user should know.

    Headers of other files are returned unchanged.

    Raises:
        ImportFailed: the file lacks a tensor or key that the change depends on, or it has the wrong shape or type.
    """
    change = _CHANGES.get(header.metadata.text("general.architecture"))
    if change is None:
        return header, []
    file = _File(header)
    change(file)
    _mark_padding(file)
    return file.header, file.notes


def _mark_padding(file: _File) -> None:
    """Declare tokens as unused that exist only because there are more embeddings, as llama.cpp's converter does.

    Ollama's has them found in any text.
    """
    tokens, types = file.values.get("tokenizer.ggml.tokens"), file.values.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, list):
        file.values["tokenizer.ggml.token_type"] = [
            UNUSED if kind == USER_DEFINED and isinstance(token, str) and _PADDING.fullmatch(token) else kind
            for token, kind in zip(tokens, types, strict=False)
        ] + types[len(tokens) :]


def _change_gemma(file: _File) -> None:
    """Correct the tokenizer of any Gemma.

    SentencePiece models of Gemma insert no space before a text; Ollama's runner does not either, but llama.cpp does by
    default. Ollama's converter declares tokens that are matched before all others as ordinary ones. SentencePiece gives
    them the score 0; the first ordinary token, which has -0, is no tag.
    """
    if file.values.get("tokenizer.ggml.model") != "llama":
        return
    file.values.setdefault("tokenizer.ggml.add_space_prefix", False)
    metadata = file.metadata
    tokens = metadata.texts("tokenizer.ggml.tokens")
    types = metadata.find_numbers("tokenizer.ggml.token_type")
    scores = metadata.find_numbers("tokenizer.ggml.scores")
    if types is None or scores is None or not len(tokens) == len(types) == len(scores):
        return  # rejected later
    changed: list[Value] = [int(kind) for kind in types]
    for index, (token, kind, score) in enumerate(zip(tokens, types, scores, strict=True)):
        if token in _TURN_TOKENS:
            changed[index] = CONTROL
        elif kind == NORMAL and score == 0 and _TAG.fullmatch(token):
            changed[index] = USER_DEFINED
    file.values["tokenizer.ggml.token_type"] = changed


def _change_gemma3(file: _File) -> None:
    if _is_own_gemma3(file):
        _reject_other_models(file)
        file.leave_out_encoder()
        _complete_gemma3(file)
        _truncate_vocabulary(file)
        file.add_template("Gemma 3", "gemma3")
    _change_gemma(file)


def _is_own_gemma3(file: _File) -> bool:
    """Whether Ollama's converter wrote the file: it has keys or tensors of its own, or lacks one of llama.cpp."""
    own = ("gemma3.mm.tokens_per_image", "gemma3.rope.global.freq_base", "gemma3.rope.local.freq_base")
    return (
        file.has_own_keys
        or any(key in file.values for key in own)
        or any(name.startswith(ENCODER_TENSORS) for name in file.tensors)
        or "gemma3.attention.layer_norm_rms_epsilon" not in file.values
    )


def _reject_other_models(file: _File) -> None:
    if (model := file.metadata.text("tokenizer.ggml.model")) != "llama":
        raise file.metadata.failure(f"the tokenizer {as_json(model)} is not supported for Gemma 3")
    if "gemma3.pooling_type" in file.values or any(name.startswith("dense.") for name in file.tensors):
        raise file.metadata.failure(
            "it is an embedding model (EmbeddingGemma), which cannot be imported from GGUF files"
        )


def _complete_gemma3(file: _File) -> None:
    first = "gemma3.rope.global.freq_base" in file.values
    if first and file.values.get("gemma3.final_logit_softcapping") == _UNUSED_SOFTCAP:
        del file.values["gemma3.final_logit_softcapping"]
    file.rename_key("gemma3.rope.global.freq_base", "gemma3.rope.freq_base")
    file.rename_key("gemma3.rope.local.freq_base", "gemma3.rope.freq_base_swa")
    for name, value in _GEMMA3_DEFAULTS.items():
        file.values.setdefault(f"gemma3.{name}", value)
    scaled = any(f"gemma3.{name}" in file.values for name in _GEMMA3_SCALING)
    if not scaled and (file.metadata.find_integer("gemma3.context_length") or 0) >= _GEMMA3_SCALED_CONTEXT:
        file.values |= {f"gemma3.{name}": value for name, value in _GEMMA3_SCALING.items()}


def _truncate_vocabulary(file: _File) -> None:
    """Drop tokens at the end that have no embedding: those for images."""
    rows = file.tensors[EMBEDDING].shape[0] if EMBEDDING in file.tensors else 0
    for name in ("tokens", "scores", "token_type"):
        values = file.values.get(f"tokenizer.ggml.{name}")
        if rows and isinstance(values, list):
            file.values[f"tokenizer.ggml.{name}"] = values[:rows]


def _change_gpt_oss(file: _File) -> None:
    if file.values["general.architecture"] == "gpt-oss" and not file.has_own_keys:
        return
    file.rename_architecture("gpt-oss")
    for name in list(file.tensors):
        match = _LAYER_TENSOR.fullmatch(name)
        if match and (new := _GPT_OSS_TENSORS.get(match[2])):
            file.rename_tensor(name, f"{match[1]}.{new}")
    _split_fused_tensors(file)
    gate = file.tensors.get("blk.0.ffn_gate_exps.weight")
    if gate and len(gate.shape) > 1:
        file.values.setdefault("gpt-oss.expert_feed_forward_length", gate.shape[-2])
    file.values.setdefault("gpt-oss.rope.scaling.type", "yarn")
    file.name_pre_tokenizer("gpt-4o")
    file.add_template("GPT-OSS", "gpt-oss")


def _split_fused_tensors(file: _File) -> None:
    """Split the projections that the first files fuse, as `model/models/gptoss` does."""
    metadata = file.metadata
    attention_rows = functools.cache(lambda: _attention_rows(Facts(file.header)))
    for name in list(file.tensors):
        match = _LAYER_TENSOR.fullmatch(name)
        layer, _, leaf = match[2].rpartition(".") if match else ("", "", "")
        if match and layer == "attn_qkv":
            rows = {f"{match[1]}.{part}.{leaf}": count for part, count in attention_rows().items()}
            file.replace_tensor(name, _split_rows(metadata, file.tensors[name], rows))
        elif match and layer == "ffn_gate_up_exps":
            parts = [f"{match[1]}.{part}.{leaf}" for part in ("ffn_gate_exps", "ffn_up_exps")]
            # The rows of matrices, the elements of biases.
            axis = -1 if leaf == "bias" else -2
            file.replace_tensor(name, _split_turns(metadata, file.tensors[name], parts, axis))


def _attention_rows(facts: Facts) -> dict[str, int]:
    heads = {"attn_q": facts.heads, "attn_k": facts.kv_heads, "attn_v": facts.kv_heads}
    return {part: count * facts.head_dim for part, count in heads.items()}


def _split_rows(metadata: Metadata, tensor: TensorInfo, rows: dict[str, int]) -> dict[str, TensorInfo]:
    """Divide a tensor into consecutive rows; of a vector, into consecutive elements."""
    total = tensor.shape[0]
    if total != sum(rows.values()) or tensor.nbytes % total:
        raise metadata.failure(
            f"tensor {as_json(tensor.name)} of type {tensor.type} has the shape {list(tensor.shape)}, "
            f"but the metadata implies {sum(rows.values())} rows"
        )
    row_bytes, start = tensor.nbytes // total, 0
    parts: dict[str, TensorInfo] = {}
    for name, count in rows.items():
        parts[name] = replace(
            tensor,
            name=name,
            shape=(count, *tensor.shape[1:]),
            offset=tensor.offset + start * row_bytes,
            nbytes=count * row_bytes,
        )
        start += count
    return parts


def _split_turns(metadata: Metadata, tensor: TensorInfo, names: list[str], axis: int) -> dict[str, TensorInfo]:
    """Divide a tensor into those whose items take turns along an axis, counted from the last one, which is -1."""
    axis += len(tensor.shape)
    items = math.prod(tensor.shape[: axis + 1])
    if axis < 0 or tensor.shape[axis] % len(names) or tensor.nbytes % items:
        raise metadata.failure(
            f"tensor {as_json(tensor.name)} of type {tensor.type} has the shape {list(tensor.shape)}, "
            f"which cannot be divided into {len(names)} tensors"
        )
    shape = (*tensor.shape[:axis], tensor.shape[axis] // len(names), *tensor.shape[axis + 1 :])
    return {
        name: replace(
            tensor,
            name=name,
            shape=shape,
            nbytes=tensor.nbytes // len(names),
            interleaving=Interleaving(index, len(names), tensor.nbytes // items),
        )
        for index, name in enumerate(names)
    }


def _change_qwen25vl(file: _File) -> None:
    """Take the text model, which is Qwen 2.5: for texts, the three parts of its RoPE have the same positions."""
    file.leave_out_encoder()
    file.rename_architecture("qwen2")
    file.name_pre_tokenizer("qwen2")


def _change_mistral3(file: _File) -> None:
    """Take the text model of Mistral Small 3, whose queries and keys are interleaved like those of Llama."""
    if not any(name.startswith(ENCODER_TENSORS) for name in file.tensors):
        return
    if scaled := sorted(key for key in file.values if key.startswith("mistral3.rope.scaling")):
        raise file.metadata.failure(f"the metadata key {as_json(scaled[0])} is not supported for Mistral 3")
    file.leave_out_encoder()
    file.rename_architecture("llama")
    file.name_pre_tokenizer("tekken")


_CHANGES: dict[str, Callable[[_File], None]] = {
    "gemma": _change_gemma,
    "gemma2": _change_gemma,
    "gemma3": _change_gemma3,
    "gptoss": _change_gpt_oss,
    "gpt-oss": _change_gpt_oss,
    "qwen25vl": _change_qwen25vl,
    "mistral3": _change_mistral3,
}
