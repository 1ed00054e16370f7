"""LM Studio's model folders: `PUBLISHER/MODEL/`, with GGUF files or an MLX model. Nothing in them is changed."""

import json
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec

from osaurusctl.errors import CliError
from osaurusctl.programs.model import Program, ProgramModel
from osaurusd.wire.lineage import Origin

_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_QUANTIZATION = re.compile(r"(?:^|[.\-_])((?:I?Q\d\w*|MXFP4|BF16|F16|F32))$", re.IGNORECASE)
_PROJECTOR = "mmproj"
# Repositories with large files have a folder for each quantization.
_FOLDERS = ("*", "*/*", "*/*/*")


def folders() -> Iterator[Path]:
    """Yield the folders that may contain models: users can move LM Studio's home and its models."""
    home = Path.home()
    pointer = _read_text(home / ".lmstudio-home-pointer").strip()
    folder = Path(pointer) if pointer else home / ".lmstudio"
    try:
        settings = json.loads(_read_text(folder / "settings.json"))
    except ValueError:
        settings = None
    if isinstance(settings, dict) and isinstance(downloads := settings.get("downloadsFolder"), str) and downloads:
        yield Path(downloads)
    yield folder / "models"
    yield home / ".lmstudio" / "models"
    yield home / ".cache" / "lm-studio" / "models"


def find_models() -> list[ProgramModel]:
    """Return the models that LM Studio has, complete or not.

    Raises:
        CliError: a folder cannot be read.
    """
    found: dict[Path, ProgramModel] = {}
    for root in dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders() if folder.is_absolute()):
        try:
            for folder in sorted(chain.from_iterable(root.glob(pattern) for pattern in _FOLDERS)):
                if folder.is_dir() and not folder.relative_to(root).parts[0].startswith("."):
                    found |= {Path(model.path): model for model in _read_folder(root, folder)}
        except OSError as error:
            raise CliError(f"cannot read {error.filename or root}: {error.strerror}") from error
    return sorted(found.values(), key=lambda model: model.name.casefold())


def _read_folder(root: Path, folder: Path) -> Iterator[ProgramModel]:
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    gguf = [path for path in files.values() if path.suffix.lower() == ".gguf"]
    if "config.json" in files and any(name.endswith(".safetensors") for name in files):
        yield _model(root, folder, "mlx", list(files.values()), [])
    projectors = [path for path in gguf if _PROJECTOR in path.name.lower()]
    notes = ["the image encoder is not imported; the result accepts text only"] if projectors else []
    for path in gguf:
        part = _PART.search(path.stem)
        if path in projectors or (part and int(part[1]) != 1):
            continue
        stem = path.stem[: part.start()] if part else path.stem
        parts = (
            [stem + f"-{number:05d}-of-{part[2]}{path.suffix}" for number in range(1, int(part[2]) + 1)] if part else []
        )
        model = _model(root, path, "gguf", [files[name] for name in parts if name in files] or [path], notes)
        missing = [name for name in parts if name not in files]
        if missing:
            yield model.unusable(f"the part {missing[0]} is missing")
        else:
            yield msgspec.structs.replace(model, parts=parts)


def _model(root: Path, path: Path, form: str, files: list[Path], notes: list[str]) -> ProgramModel:
    name = path.relative_to(root).as_posix()
    match = _QUANTIZATION.search(_PART.sub("", path.stem)) if form == "gguf" else None
    return ProgramModel(
        name=name,
        path=str(path),
        format=form,
        bytes=sum(file.stat().st_size for file in files),
        quantization=match[1].upper() if match else None,
        notes=notes,
        origin=Origin(program=Program.LM_STUDIO.label, name=name),
    )


def folder_names(model: ProgramModel) -> list[str]:
    """Return the names of the files in the folder of an MLX model."""
    return sorted(path.name for path in Path(model.path).iterdir() if path.is_file())


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
