"""What the catalog knows of one model."""

from dataclasses import dataclass
from pathlib import Path

from osaurusd.wire.admin import ModelState


@dataclass(frozen=True)
class GenerationDefaults:
    """Sampling that the model's own `generation_config.json` asks for; None where it says nothing.

    A `temperature` of 0 is also what `do_sample: false` asks for.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that the weights take, and that each token of context adds where the config tells."""

    weights_bytes: int = 0
    cache_bytes_per_token: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """One model on disk.

    `repo` is its identity: `org/name` from the hub or an extra root, the folder's name for an imported one. `created`
    is when it arrived, in unix seconds. `reason` says what is missing or wrong unless it is available. `files` are
    names and sizes in bytes. One that `escapes` has links that lead out of the store: nothing of it may be read.
    """

    name: str
    repo: str
    path: Path
    source: str
    state: ModelState
    created: int
    files: tuple[tuple[str, int], ...] = ()
    reason: str | None = None
    escapes: bool = False
    architecture: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    generation: GenerationDefaults = GenerationDefaults()
    memory: MemoryEstimate = MemoryEstimate()
    aliases: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.files)
