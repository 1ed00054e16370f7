"""Whether a model's weights are all there, from headers alone.

Format: https://huggingface.co/docs/safetensors, an 8-byte little-endian header length, a JSON header, the data.
"""

import json
import struct
from pathlib import Path

INDEX = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000


def missing_weights(folder: Path) -> str | None:
    """What is missing of the weights in `folder`, or None if they are complete."""
    try:
        shards = _shards(folder)
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        return f"{INDEX} cannot be read: {error}"
    if not shards:
        return "no model*.safetensors"
    for name in shards:
        if problem := _problem(folder / name):
            return f"{name}: {problem}"
    return None


def _shards(folder: Path) -> list[str]:
    """Names of the weight files: those that the index names, or all that mlx_lm would read."""
    index = folder / INDEX
    if index.exists():
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"it names a file outside the model: {outside[0]}")
        return sorted(names)
    return sorted(path.name for path in folder.glob("model*.safetensors"))


def _problem(path: Path) -> str | None:
    try:
        size = path.stat().st_size
        expected = _expected_size(path)
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError, LookupError, AttributeError, TypeError, struct.error) as error:
        return f"unreadable header: {error}"
    if size != expected:
        return f"{size} bytes, but its header implies {expected}"
    return None


def _expected_size(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes is announced")
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + int(length) + max(ends, default=0)
