"""Whether a model has the files from which the installed transformers builds its tokenizer.

Which files a tokenizer class reads follows from transformers' source: importing it would load it into the daemon.
"""

import json
import re
from collections.abc import Container, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

TOKENIZER = "tokenizer.json"
COMPLETE_FILES = (TOKENIZER, "tekken.json", "tokenizer.model")
"""Files from each of which every tokenizer class can be built, in the order of preference."""

_VOCABULARY = "vocab.json"
_TIKTOKEN = "tiktoken.model"

_END_BYTES = 256
_LFS_POINTER = b"version https://git-lfs"
_JSON_SPACE = b" \t\r\n"
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")

_TOKEN_AND_RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+")

_CLASS_OF_MODEL_TYPE = re.compile(r'\(\s*"([\w.-]+)",\s*"(\w+)"')
_CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)
_VOCABULARY_FILES = re.compile(r"^VOCAB_FILES_NAMES = \{(.*?)\}", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r':\s*"([^"]+)"')


def find_missing(files: Container[str], config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> str | None:
    """Return why no tokenizer can be built from the files; None if one can.

    Args:
        files: the names of the model's files.
        config: the model's `config.json`.
        tokenizer_config: its `tokenizer_config.json`, or an empty object.
    """
    if any(name in files for name in COMPLETE_FILES):
        return None
    if _TIKTOKEN in files:
        return None if find_spec("tiktoken") else f"{_TIKTOKEN} requires the Python package `tiktoken`"
    name = _tokenizer_class(config, tokenizer_config)
    needed = _files_of_classes().get(name)
    if needed is None:
        return "the tokenizer is missing"
    absent = [file for file in needed if file not in files]
    return f"the tokenizer is missing: {name} needs {absent[0]}" if absent else None


def find_damage(folder: Path, files: Mapping[str, int]) -> str | None:
    """Return which tokenizer file is not completely downloaded; None if all look complete.

    Args:
        folder: the model's folder.
        files: sizes in bytes by file name.
    """
    name = next((name for name in (*COMPLETE_FILES, _TIKTOKEN, _VOCABULARY) if name in files), None)
    if name is None:
        return None
    try:
        head, tail = _read_ends(folder / name, files[name])
        if head.startswith(_LFS_POINTER):
            return f'{name} is a Git LFS pointer instead of the file; run "git lfs pull" in the model\'s folder'
        if name.endswith(".json"):
            complete = _is_json_object(head, tail) and (_ends_as_usual(tail) or _is_json(folder / name))
        elif name == _TIKTOKEN:
            complete = _is_token_list(head, tail)
        else:
            complete = _is_protobuf((folder / name).read_bytes())
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None if complete else f"{name} is incomplete"


def _read_ends(path: Path, size: int) -> tuple[bytes, bytes]:
    """Return the first and the last bytes of a file."""
    with path.open("rb") as file:
        head = file.read(_END_BYTES)
        file.seek(max(0, size - _END_BYTES))
        return head, file.read().rstrip(_JSON_SPACE + b"\0")


def _is_json_object(head: bytes, tail: bytes) -> bool:
    for mark in _BYTE_ORDER_MARKS:
        head = head.removeprefix(mark)
    return head.lstrip(_JSON_SPACE + b"\0").startswith(b"{") and tail.endswith(b"}")


def _ends_as_usual(tail: bytes) -> bool:
    """Whether the last bracket is at the start of its line, as in a whole file with indentation. A file that was cut
    after an inner bracket ends otherwise.
    """
    return tail.endswith(b"\n}")


def _is_json(path: Path) -> bool:
    """Whether a file is a valid JSON object. Parsing every tokenizer would make scans slow."""
    content = path.read_bytes().removeprefix(_BYTE_ORDER_MARKS[0])
    try:
        msgspec.json.decode(content, type=dict[str, msgspec.Raw])  # creates no values, which takes most of the time
    except (ValueError, RecursionError):
        return _is_json_in_utf_16(content)
    return True


def _is_json_in_utf_16(content: bytes) -> bool:
    if not content.startswith(_BYTE_ORDER_MARKS[1:]):
        return False
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _is_token_list(head: bytes, tail: bytes) -> bool:
    """Whether the first and the last line of a `tiktoken.model` are a token in Base64 and its rank."""
    head = head.removeprefix(_BYTE_ORDER_MARKS[0])
    return all(_TOKEN_AND_RANK.fullmatch(line.strip()) for line in (head.split(b"\n")[0], tail.split(b"\n")[-1]))


def _is_protobuf(content: bytes) -> bool:
    """Whether the content is a sequence of complete length-delimited fields, as a SentencePiece model is."""
    try:
        return bool(content) and all(end <= len(content) for end in _field_ends(content))
    except IndexError:
        return False


def _field_ends(content: bytes) -> Iterator[int]:
    """Yield the position after each field; raises IndexError if the content ends within a length."""
    position = 0
    while position < len(content):
        position += 1  # the tag of a field of a SentencePiece model has one byte
        length = shift = 0
        while content[position] & 0x80:
            length |= (content[position] & 0x7F) << shift
            position, shift = position + 1, shift + 7
        position += 1 + (length | content[position] << shift)
        yield position


def _tokenizer_class(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> str:
    """Return the class that transformers selects: the declared one, or that of the model type."""
    declared = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    if not isinstance(declared, str):
        declared = _classes_by_model_type().get(str(config.get("model_type")), "")
    return declared.removesuffix("Fast")


@cache
def _classes_by_model_type() -> dict[str, str]:
    return dict(_CLASS_OF_MODEL_TYPE.findall(_read_source("models/auto/tokenization_auto.py")))


@cache
def _files_of_classes() -> dict[str, tuple[str, ...]]:
    """Return the names of the vocabulary files that each tokenizer class needs, if it needs any."""
    package = _package()
    found: dict[str, tuple[str, ...]] = {}
    for path in package.glob("models/*/tokenization_*.py") if package else ():
        source = path.read_text(encoding="utf-8")
        if match := _VOCABULARY_FILES.search(source):
            files = tuple(file for file in _FILE.findall(match[1]) if file not in COMPLETE_FILES)
            found |= dict.fromkeys(_CLASS.findall(source), files) if files else {}
    return found


def _read_source(name: str) -> str:
    package = _package()
    return "" if package is None else (package / name).read_text(encoding="utf-8")


def _package() -> Path | None:
    spec = find_spec("transformers")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
