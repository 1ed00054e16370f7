"""Settings that another program adds to a model file: checked, and converted to the model's generation config."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from osaurusd.errors import ImportFailed
from osaurusd.wire.files import replace_file
from osaurusd.wire.lineage import Origin

_GENERATION_CONFIG = "generation_config.json"
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def adapt(folder: Path, provenance: dict[str, Any], origin: Origin) -> Iterator[str]:
    """Write the settings of another program into a model folder. Yields what is not imported.

    Args:
        folder: the imported model.
        provenance: its record, which gets the names of the program and the model.
        origin: what the other program knows about the file.

    Raises:
        ImportFailed: the file is not the one that the program recorded.
        OSError: a file could not be written.
    """
    if origin.sha256 is not None and provenance.get("sha256") not in (None, origin.sha256):
        raise ImportFailed(
            f"{origin.name}: the file is damaged: its checksum is not the one that {origin.program} recorded"
        )
    provenance |= {"source": origin.name, "program": origin.program}
    yield from _write_generation_config(folder, origin)


def _write_generation_config(folder: Path, origin: Origin) -> Iterator[str]:
    config = _read_object(folder / _GENERATION_CONFIG)
    sampling = {name: value for name in _SAMPLING if (value := getattr(origin, name)) is not None}
    ends, unknown = _end_tokens(folder, config.get("eos_token_id"), origin.stop)
    changes = sampling | ({"eos_token_id": ends} if ends else {})
    if "temperature" in sampling:
        changes["do_sample"] = sampling["temperature"] > 0
    if changes:
        replace_file(folder / _GENERATION_CONFIG, json.dumps(config | changes, indent=2).encode() + b"\n", mode=0o644)
    if unknown:
        yield f"stop texts that are not single tokens are not imported: {', '.join(map(repr, unknown))}"


def _end_tokens(folder: Path, declared: Any, stop: list[str]) -> tuple[list[int], list[str]]:
    """Return the ids of all end tokens if `stop` adds any to the declared ones, and the stops that are no tokens."""
    tokens = _special_tokens(folder) if stop else {}
    known = [declared] if isinstance(declared, int) else [each for each in declared or [] if isinstance(each, int)]
    added = [tokens[text] for text in stop if text in tokens]
    ends = list(dict.fromkeys([*known, *added]))
    return ends if ends != known else [], [text for text in stop if text not in tokens]


def _special_tokens(folder: Path) -> dict[str, int]:
    """Return the ids of the special tokens: an ordinary token would end an output in the middle of a text."""
    added = _read_object(folder / "tokenizer.json").get("added_tokens")
    return {
        token["content"]: token["id"]
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and isinstance(token.get("content"), str) and isinstance(token.get("id"), int)
    }


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
