"""A model's metadata, read from its JSON files, chat template and model card.

Unless stated otherwise, a file that is missing or invalid counts as empty.
"""

import errno
import json
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec.structs import replace

from osaurusd.models import vision
from osaurusd.models.record import Capabilities, GenerationDefaults, ModelRecord, Task
from osaurusd.wire import model_files
from osaurusd.wire.lineage import ImportRecord, Lineage
from osaurusd.wire.quantization import QuantizationReport

IMPORT_RECORD = "osaurus.json"
"""The file in which an import records the source, the license and the digests of a model."""

TEMPLATE_FILES = ("tokenizer_config.json", "chat_template.json", "processor_config.json")
"""JSON files that can contain the chat template as `chat_template`, if there is no chat_template.jinja."""

_CONTEXT_KEYS = (
    "max_position_embeddings",
    "max_context_length",  # OpenELM
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_positions",
    "n_ctx",
)

# A tokenizer_config.json that lists many added tokens has a few MB.
_MAX_JSON_BYTES = 64 * 1024 * 1024
_MAX_TEXT_BYTES = 1_000_000

# Larger than any vocabulary: such a `top_k` is invalid.
_MAX_TOP_K = 2**31 - 1

_SAMPLING_TEMPERATURE = 1.0  # transformers' default for models that sample

# Chat templates of models with tool support iterate over `tools`; those of reasoning models open a reasoning block.
_TOOLS = re.compile(r"\btools\b")
_REASONING = re.compile(r"<think>|</think>|enable_thinking|reasoning_content|<\|channel\|?>")
_LICENSE = re.compile(r"^license(?:_name)?:\s*([^\s#]+)", re.MULTILINE)
_RANKING = re.compile(r"^pipeline_tag:\s*['\"]?text-ranking\b", re.MULTILINE)

# sentence-transformers stores its pipeline in this file.
_EMBEDDING_PIPELINE = "modules.json"

ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "modernbert"})
"""Architectures that cannot generate text."""


class Provenance(msgspec.Struct, frozen=True):
    """Where a model comes from: its revision on the hub, its license, and how it was quantized or imported here."""

    commit: str | None = None
    license: str | None = None
    lineage: Lineage | None = None
    imported: ImportRecord | None = None


def read_json(path: Path) -> Any:
    """Read the JSON in `path`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not JSON; the message states the reason.
    """
    with _open(path) as file:
        content = file.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        raise ValueError(f"{path.name} is larger than {_MAX_JSON_BYTES} bytes")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a JSON object; the message states the reason.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must contain a JSON object, not {type(value).__name__}")
    return value


def architecture(config: Mapping[str, Any]) -> str | None:
    """Return the `model_type`, by which mlx_lm selects a model's implementation."""
    model_type = config.get("model_type")
    return model_type if isinstance(model_type, str) else None


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the maximum number of prompt and output tokens, or None if the config does not state it."""
    for section in (config, config.get("text_config")):
        if not isinstance(section, dict):
            continue
        for key in _CONTEXT_KEYS:
            value = section.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def quantization(config: Mapping[str, Any]) -> str | None:
    """Return a short label such as `4-bit` or `mxfp4`; None for full precision."""
    scheme = config.get("quantization") or config.get("quantization_config")
    if not isinstance(scheme, dict):
        return None
    mode = scheme.get("mode", "affine")
    if mode != "affine":
        return str(mode)
    if bits := scheme.get("bits"):
        return f"{bits}-bit"
    return str(scheme.get("quant_method", "quantized"))


def task(config: Mapping[str, Any], files: Container[str]) -> Task:
    """Return the task that a model was trained for.

    Args:
        config: the model's `config.json`.
        files: the names of its files.
    """
    if _EMBEDDING_PIPELINE in files:
        return "embed"
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    if any(isinstance(name, str) and name.endswith("ForSequenceClassification") for name in names):
        return "rerank"
    return "embed" if architecture(config) in ENCODERS else "generate"


def ranks_documents(folder: Path, repo: str) -> bool:
    """Whether a language model was trained to rank documents, as its model card or its repository's name states."""
    card = _text_or_empty(folder / "README.md")
    is_tagged = card.startswith("---") and _RANKING.search(card.split("\n---", 1)[0]) is not None
    return is_tagged or "qwen3-reranker" in repo.lower()


def capabilities(folder: Path, config: Mapping[str, Any], files: Container[str]) -> Capabilities:
    """Derive what a generative model supports from its config, its files and its chat template."""
    template = "\n".join([_chat_template(folder), *map(_text_or_empty, _find_named_templates(folder))])
    return Capabilities(
        chat=bool(template.strip()),
        tools=_TOOLS.search(template) is not None,
        reasoning=_REASONING.search(template) is not None,
        vision=vision.accepts_images(config, files),
    )


def _find_named_templates(folder: Path) -> list[Path]:
    """Return the named chat templates of a model, sorted by name; none if the folder cannot be read."""
    try:
        files = model_files.find_subfolder_files(folder)
    except OSError:
        return []
    return [path for path in files if model_files.is_named_template(path.relative_to(folder).as_posix())]


def generation_defaults(folder: Path) -> GenerationDefaults:
    """Read the sampling parameters in `generation_config.json`; values that are out of range are ignored."""
    config = _json_object_or_empty(folder / "generation_config.json")
    top_k = _number_in_range(config.get("top_k"), 0, _MAX_TOP_K)
    defaults = GenerationDefaults(
        temperature=_number_in_range(config.get("temperature"), 0, 2),
        top_p=_number_in_range(config.get("top_p"), 0, 1) or None,
        top_k=None if top_k is None else int(top_k),
        min_p=_number_in_range(config.get("min_p"), 0, 1),
        repetition_penalty=_number_in_range(config.get("repetition_penalty"), 0, 10) or None,
    )
    do_sample = config.get("do_sample")
    if do_sample is False:
        return replace(defaults, temperature=0.0)
    filters = (defaults.top_p, defaults.top_k, defaults.min_p)
    if defaults.temperature is None and (do_sample is True or any(value is not None for value in filters)):
        return replace(defaults, temperature=_SAMPLING_TEMPERATURE)
    return defaults


def tokenizer_requires_code(tokenizer_config: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer_config.json` names a tokenizer class that the repository itself ships as code."""
    auto_map = tokenizer_config.get("auto_map")
    # Older files have a list with the slow and the fast class instead of an object.
    return isinstance(auto_map, list) or (isinstance(auto_map, dict) and "AutoTokenizer" in auto_map)


def read_provenance(record: ModelRecord) -> Provenance:
    """Read a model's revision and license. Blocking; run in a thread."""
    if record.escapes:
        return Provenance()
    folder = record.path
    return Provenance(
        commit=folder.name if folder.parent.name == "snapshots" else None,
        license=_license(folder),
        lineage=_lineage(folder),
        imported=_import_record(folder),
    )


def read_recorded_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of files by name that the import of a model recorded; empty if there is no valid record."""
    files = _json_object_or_empty(folder / IMPORT_RECORD).get("files")
    if not isinstance(files, dict):
        return {}
    return {name: digest for name, digest in files.items() if isinstance(digest, str)}


def _chat_template(folder: Path) -> str:
    """Return the chat template: a separate file, or a string or a list of named templates in a JSON file."""
    if text := _text_or_empty(folder / "chat_template.jinja"):
        return text
    for name in TEMPLATE_FILES:
        template = _json_object_or_empty(folder / name).get("chat_template")
        if isinstance(template, str):
            return template
        if isinstance(template, list):
            return "\n".join(str(entry.get("template", "")) for entry in template if isinstance(entry, dict))
    return ""


def _license(folder: Path) -> str | None:
    """Return the license from the model card's front matter, the import record or the config."""
    card = _text_or_empty(folder / "README.md")
    if card.startswith("---") and (match := _LICENSE.search(card.split("\n---", 1)[0])):
        return match[1]
    for name in (IMPORT_RECORD, "config.json"):
        value = _json_object_or_empty(folder / name).get("license")
        if isinstance(value, str):
            return value
    return None


def _lineage(folder: Path) -> Lineage | None:
    """Return how a model was quantized, from its import record."""
    document = _json_object_or_empty(folder / IMPORT_RECORD)
    base, quantization = document.get("base"), document.get("quantization")
    if not isinstance(base, dict) or not isinstance(quantization, dict):
        return None
    try:
        return msgspec.convert(
            {**quantization, "base": base.get("name"), "base_commit": base.get("commit")}, type=Lineage
        )
    except msgspec.ValidationError:
        return None


def _import_record(folder: Path) -> ImportRecord | None:
    """Return where an imported model comes from; None for other models, and if there is no valid record."""
    document = _json_object_or_empty(folder / IMPORT_RECORD)
    quantization = document.pop("quantization", None)
    try:
        record = msgspec.convert(document, type=ImportRecord)
        if not isinstance(quantization, dict):
            return record
        report = msgspec.convert(quantization, type=QuantizationReport)
    except msgspec.ValidationError:
        return None
    return msgspec.structs.replace(record, quantize=str(quantization.get("mode", "auto")), quantization=report)


def _number_in_range(value: object, low: float, high: float) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return float(value)
    return None


def _json_object_or_empty(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except (OSError, ValueError):
        return {}


def _text_or_empty(path: Path) -> str:
    try:
        with _open(path) as file:
            return file.read(_MAX_TEXT_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _open(path: Path) -> BinaryIO:
    """Open a regular file. Opening a pipe would block the scan.

    Raises:
        OSError: `path` is something else, or cannot be opened.
    """
    if not path.is_file():
        raise OSError(errno.ENOENT, "not a regular file", str(path))
    return path.open("rb")
