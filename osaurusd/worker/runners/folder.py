"""Model folders that mlx_lm or transformers misread, although their content is complete.

mlx_lm expands the path of the folder as a glob pattern, both reject JSON with a byte order mark, and transformers does
not read the templates that older processors stored in files of their own.
"""

import codecs
import contextlib
import glob
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_TOKENIZER_CONFIG = "tokenizer_config.json"
_GENERATION_CONFIG = "generation_config.json"
_TEMPLATE = "chat_template.jinja"
_TEMPLATE_KEY = "chat_template"
_NAMED_TEMPLATES = "additional_chat_templates"
_OTHER_TEMPLATES = ("chat_template.json", "processor_config.json")

# What is checked for byte order marks. Tokenizers in other formats have none.
_TEXT_SUFFIXES = (".json", ".jinja", ".txt")

_PLAIN_TEMPORARY_FOLDER = "/tmp"


@contextlib.contextmanager
def loadable(folder: Path) -> Iterator[Path]:
    """Yield a folder that mlx_lm can load: `folder`, or a temporary one with links to its files and corrections."""
    corrected = _correct_files(folder)
    if not corrected and not _is_pattern(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="osaurusd-model-", dir=_temporary_folder()) as name:
        temporary = Path(name)
        for path in folder.absolute().iterdir():
            if path.name not in corrected:
                (temporary / path.name).symlink_to(path)
        for file, content in corrected.items():
            if content is not None:
                (temporary / file).write_bytes(content)
        yield temporary


def _correct_files(folder: Path) -> dict[str, bytes | None]:
    """Return the corrected content of files by name, and None for files to leave out."""
    corrected: dict[str, bytes | None] = {
        path.name: _decode(path.read_bytes()).encode()
        for path in folder.iterdir()
        if path.suffix in _TEXT_SUFFIXES and path.is_file() and _has_other_encoding(path)
    }
    tokenizer_config = _read_object(folder / _TOKENIZER_CONFIG)
    if not (folder / _TEMPLATE).exists() and tokenizer_config.get(_TEMPLATE_KEY) is None:
        templates = (_read_object(folder / name).get(_TEMPLATE_KEY) for name in _OTHER_TEMPLATES)
        if template := next((each for each in templates if each), None):
            document = {**tokenizer_config, _TEMPLATE_KEY: template}
            corrected[_TOKENIZER_CONFIG] = json.dumps(document).encode()
    default = tokenizer_config.get(_TEMPLATE_KEY)
    if isinstance(default, str) and not (folder / _TEMPLATE).exists() and (folder / _NAMED_TEMPLATES).is_dir():
        # transformers forgets the template in the configuration if there are named ones.
        corrected[_TEMPLATE] = default.encode()
    if not _read_object(folder / _GENERATION_CONFIG) and os.path.lexists(folder / _GENERATION_CONFIG):
        # mlx_lm only takes the end tokens from it, but fails if it is not an object.
        corrected[_GENERATION_CONFIG] = None
    return corrected


def _has_other_encoding(path: Path) -> bool:
    """Whether a file is not plain UTF-8, judged by its first bytes, as Python's JSON parser does."""
    with path.open("rb") as file:
        head = file.read(4)
    if path.suffix == ".json":
        return json.detect_encoding(head) != "utf-8"
    return head.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _decode(content: bytes) -> str:
    return content.decode(json.detect_encoding(content), errors="replace")


def _read_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON object; empty if there is none. transformers reports files that are invalid."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _is_pattern(path: str | os.PathLike[str]) -> bool:
    return glob.escape(os.fspath(path)) != os.fspath(path)


def _temporary_folder() -> str | None:
    return _PLAIN_TEMPORARY_FOLDER if _is_pattern(tempfile.gettempdir()) else None
