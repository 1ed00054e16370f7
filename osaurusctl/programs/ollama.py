"""Ollama's model store: manifests that name blobs by their checksums. Nothing in it is changed.

Layout (Ollama's `manifest/paths.go`): `manifests/HOST/NAMESPACE/MODEL/TAG`, `blobs/sha256-HEX`.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from osaurusctl.errors import CliError
from osaurusctl.programs.model import Program, ProgramModel
from osaurusd.wire.errors import as_json
from osaurusd.wire.lineage import Origin

_HOST, _NAMESPACE = "registry.ollama.ai", "library"
_MEDIA_TYPE = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
# Of manifests, configs and parameters; none of them is larger than a few kB.
_MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
_DEPTH = 4

# The home of the account that Ollama's service on Linux runs as.
_SERVICE_STORE = Path("/usr/share/ollama/.ollama/models")

_NOT_IMPORTED = {
    "template": "Ollama's chat template is not imported; the GGUF file's is used, if it has one",
    "system": "the system prompt is not imported; send it with each request",
    "adapter": "the adapter is not imported; the result is the base model",
    "projector": "the image encoder is not imported; the result accepts text only",
    "messages": "the example messages are not imported",
}

# Ollama's parameters and their fields in `Origin`.
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
}


def find_models() -> list[ProgramModel]:
    """Return the models that Ollama has, complete or not.

    Raises:
        CliError: Ollama's folder cannot be read.
    """
    store = _store()
    manifests = store / "manifests"
    try:
        files = sorted(path for path in manifests.glob("/".join("*" * _DEPTH)) if path.is_file())
    except OSError as error:
        raise CliError(f"cannot read {manifests}: {error.strerror}") from error
    return [_read_model(store, path) for path in files if not path.name.startswith(".")]


def full_name(name: str) -> str:
    """Return a name with its tag and without Ollama's defaults, as `find_models` reports it."""
    parts = name.removeprefix("https://").removeprefix("http://").removeprefix(f"{_HOST}/").split("/")
    name = "/".join(parts[1:] if len(parts) == 2 and parts[0] == _NAMESPACE else parts)
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def find_tags(models: Iterable[ProgramModel], name: str) -> list[str]:
    """Return the names of models that differ from `name` in their tag only."""
    wanted = full_name(name).rpartition(":")[0].casefold()
    return [model.name for model in models if model.name.rpartition(":")[0].casefold() == wanted]


def _store() -> Path:
    if configured := os.environ.get("OLLAMA_MODELS"):
        return Path(configured).expanduser().absolute()
    own = Path.home() / ".ollama" / "models"
    return own if (own / "manifests").is_dir() or not _SERVICE_STORE.is_dir() else _SERVICE_STORE


def _read_model(store: Path, path: Path) -> ProgramModel:
    name = _name(*path.relative_to(store / "manifests").parts)
    empty = ProgramModel(
        name=name, path=str(path), format="unknown", bytes=0, origin=Origin(program=Program.OLLAMA.label, name=name)
    )
    try:
        return _describe(store, empty, _read_object(path))
    except KeyError as error:
        return empty.unusable(f"its manifest cannot be read: `{error.args[0]}` is missing")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return empty.unusable(f"its manifest cannot be read: {error}")


def _describe(store: Path, model: ProgramModel, manifest: Mapping[str, Any]) -> ProgramModel:
    layers: dict[str, list[Mapping[str, Any]]] = {}
    for layer in manifest["layers"] or []:
        layers.setdefault(str(layer["mediaType"]).removeprefix(_MEDIA_TYPE), []).append(layer)
    config = _read_blob(store, manifest["config"]) if manifest.get("config") else {}
    model = msgspec.structs.replace(
        model,
        family=_text(config.get("model_family")),
        quantization=_text(config.get("file_type")),
        bytes=sum(int(layer["size"]) for each in layers.values() for layer in each),
        notes=[text for kind, text in _NOT_IMPORTED.items() if kind in layers],
    )
    weights = layers.get("model", [])
    if reason := _find_obstacle(store, config, layers):
        return model.unusable(reason)
    path, digest = _blob(store, weights[0])
    origin = msgspec.structs.replace(model.origin, sha256=digest)
    notes = list(model.notes)
    for layer in layers.get("params", []):
        origin, ignored = _add_parameters(origin, _read_blob(store, layer))
        notes += [f"parameters that are not imported: {', '.join(ignored)}"] if ignored else []
    return msgspec.structs.replace(
        model, path=str(path), format="gguf", bytes=int(weights[0]["size"]), origin=origin, notes=notes
    )


def _find_obstacle(store: Path, config: Mapping[str, Any], layers: Mapping[str, list[Mapping[str, Any]]]) -> str | None:
    """Return why a model cannot be imported, as far as its manifest shows."""
    weights = layers.get("model", [])
    if config.get("remote_host") or config.get("remote_model"):
        return "it runs on Ollama's servers; its weights are not on this machine"
    if "tensor" in layers:
        return "its weights are stored tensor by tensor, not as a GGUF file"
    if len(weights) != 1:
        return "it has no weights" if not weights else "its weights are in several files"
    if (form := config.get("model_format")) not in (None, "", "gguf"):
        return f"its weights are in the format {form}, not GGUF"
    path, _ = _blob(store, weights[0])
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "its weights are missing; the download is not complete"
    except OSError as error:
        return f"its weights cannot be read: {error.strerror}"
    return None if size == int(weights[0]["size"]) else "its weights are incomplete"


def _add_parameters(origin: Origin, parameters: Mapping[str, Any]) -> tuple[Origin, list[str]]:
    """Return the origin with the parameters that it has fields for, and the names of the others."""
    stop = parameters.get("stop")
    fields: dict[str, Any] = {
        "stop": [text for text in stop if isinstance(text, str)] if isinstance(stop, list) else []
    }
    ignored = []
    for name, value in parameters.items():
        if name == "stop":
            continue
        candidate = {field: value} if (field := _PARAMETERS.get(name)) else {}
        try:
            msgspec.convert(msgspec.to_builtins(origin) | candidate, type=Origin)
        except msgspec.ValidationError:
            candidate = {}
        fields |= candidate
        ignored += [] if candidate else [name]
    return msgspec.structs.replace(origin, **fields), ignored


def _name(host: str, namespace: str, model: str, tag: str) -> str:
    """Return the name that Ollama shows: without the parts that are its defaults."""
    parts = [model] if (host, namespace) == (_HOST, _NAMESPACE) else [namespace, model]
    return "/".join([*([] if host == _HOST else [host]), *parts]) + f":{tag}"


def _blob(store: Path, layer: Mapping[str, Any]) -> tuple[Path, str]:
    match = _DIGEST.fullmatch(str(layer["digest"]))
    if match is None:
        raise ValueError(f"invalid digest {as_json(str(layer['digest'])[:80])}")
    return store / "blobs" / f"sha256-{match[1]}", match[1]


def _read_blob(store: Path, layer: Mapping[str, Any]) -> Mapping[str, Any]:
    return _read_object(_blob(store, layer)[0])


def _read_object(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        data = file.read(_MAX_DOCUMENT_BYTES)
    try:
        document = json.loads(data)
    except ValueError:
        raise ValueError(f"{path.name} is not valid JSON") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return document


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
