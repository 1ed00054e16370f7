"""The files in subfolders that belong to a model: named chat templates, and the modules of embedding models.

The daemon and `osaurusctl`, which passes the files of a folder to an import, must agree on them. Nothing else in a
subfolder is read, downloaded or copied.
"""

import re
from pathlib import Path

_TEMPLATES = "additional_chat_templates"  # transformers' CHAT_TEMPLATE_DIR
_MODULE = r"\d+_\w+"  # sentence-transformers' names, as 1_Pooling

_SUBFOLDER = re.compile(rf"{_TEMPLATES}|{_MODULE}")
_NAMED_TEMPLATE = re.compile(rf"{_TEMPLATES}/[^/\0]+\.jinja")
_MODULE_FILE = re.compile(rf"{_MODULE}/(?:config\.json|model\.safetensors)")


def is_subfolder(name: str) -> bool:
    """Whether a subfolder of this name can contain files of a model."""
    return _SUBFOLDER.fullmatch(name) is not None


def is_named_template(name: str) -> bool:
    """Whether `name`, relative to a model's folder, is that of a named chat template."""
    return _NAMED_TEMPLATE.fullmatch(name) is not None


def is_module_file(name: str) -> bool:
    """Whether `name`, relative to a model's folder, is that of the settings or weights of an embedding module."""
    return _MODULE_FILE.fullmatch(name) is not None


def is_in_subfolder(name: str) -> bool:
    """Whether `name`, relative to a model's folder, is that of a file in a subfolder that belongs to the model."""
    return is_named_template(name) or is_module_file(name)


def find_subfolders(folder: Path) -> list[Path]:
    """Return the subfolders that can contain files of the model, sorted by name; none if the folder is missing.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if is_subfolder(path.name) and path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def find_subfolder_files(folder: Path) -> list[Path]:
    """Return the files in subfolders that belong to the model, sorted by name.

    Raises:
        OSError: a folder cannot be read.
    """
    files = [path for subfolder in find_subfolders(folder) for path in sorted(subfolder.iterdir())]
    return [path for path in files if is_in_subfolder(path.relative_to(folder).as_posix())]
