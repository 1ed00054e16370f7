"""What the catalog knows of one model."""

from dataclasses import dataclass
from pathlib import Path

from osaurusd.wire.admin import ModelState


@dataclass(frozen=True)
class GenerationDefaults:
    """Sampling that the model's own `generation_config.json` asks for; None where it says nothing."""

    temperature: float | None = None
    top_p: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """One model on disk.

    `repo` is its identity: `org/name` from the hub, the folder's name for an imported one. `created` is when it
    arrived, in unix seconds. `reason` says what is missing or wrong unless it is available.
    """

    name: str
    repo: str
    path: Path
    source: str
    state: ModelState
    size_bytes: int
    created: int
    reason: str | None = None
    architecture: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    generation: GenerationDefaults = GenerationDefaults()
