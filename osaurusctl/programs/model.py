"""A model of another program, as far as that program's own files describe it."""

from enum import StrEnum
from pathlib import Path

import msgspec

from osaurusd.wire.lineage import Origin


class Program(StrEnum):
    """Programs that models can be imported from, by their names on the command line."""

    OLLAMA = "ollama"
    LM_STUDIO = "lmstudio"

    @property
    def label(self) -> str:
        return {Program.OLLAMA: "Ollama", Program.LM_STUDIO: "LM Studio"}[self]


class ProgramModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model of another program.

    Attributes:
        name: the program's name for it.
        path: the GGUF file or the MLX folder.
        format: `gguf`, `mlx`, or another one, which cannot be imported.
        parts: the names of the files of a GGUF model that is split; `path` is the first one.
        importable: whether it can be imported; `reason` states why not.
        notes: what an import does not take over.
        origin: what the program knows about the file.
    """

    name: str
    path: str
    format: str
    parts: list[str] = []
    bytes: int
    family: str | None = None
    quantization: str | None = None
    importable: bool = True
    reason: str | None = None
    notes: list[str] = []
    origin: Origin

    def unusable(self, reason: str) -> "ProgramModel":
        return msgspec.structs.replace(self, importable=False, reason=reason)

    def offered_files(self) -> list[Path]:
        """Return the files whose headers show whether the model can be imported; none if that is known."""
        path = Path(self.path)
        if not self.importable:
            return []
        if self.format == "mlx":
            return [path / "config.json"]
        return [path.with_name(name) for name in self.parts] or [path]
