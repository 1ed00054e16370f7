"""The catalog's record of one model on disk."""

from pathlib import Path
from typing import Literal

import msgspec

from osaurusd.inference.retrieval import Pipeline
from osaurusd.wire.admin import Availability

Source = Literal["imported", "hub", "extra"]
"""Where a model was found: the daemon's own folder, the Hugging Face cache, or a folder of another program."""

Task = Literal["generate", "embed", "rerank"]
"""What a model was trained for, which determines the endpoints that serve it."""

RunnerName = Literal["text", "vision", "encoder"]
"""What runs a model in its worker: an engine that generates text, also about images, or one for whole sequences."""


class Capabilities(msgspec.Struct, frozen=True):
    """What a model supports according to its config and chat template."""

    completion: bool = True
    chat: bool = False
    tools: bool = False
    reasoning: bool = False
    vision: bool = False

    @property
    def input_modalities(self) -> tuple[Literal["text", "image"], ...]:
        """What requests to the model can contain."""
        return ("text", "image") if self.vision else ("text",)


class GenerationDefaults(msgspec.Struct, frozen=True):
    """Sampling parameters from `generation_config.json`; None where the file has no usable value.

    `do_sample: false` is represented as a `temperature` of 0. A file with `do_sample: true` or a filter, but without a
    `temperature`, means 1.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class MemoryEstimate(msgspec.Struct, frozen=True):
    """Bytes of memory for the weights, and for each token of context (None if the config does not determine it).

    `pass_bytes_per_token` is what an encoder needs for each token of a forward pass.
    """

    weights_bytes: int = 0
    cache_bytes_per_token: int | None = None
    pass_bytes_per_token: int = 0


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One model on disk.

    Attributes:
        name: the API name.
        repo: the identity: `ORG/NAME` for models of the hub and of extra roots, the folder name for imported ones.
        created: when the model was added, in Unix seconds.
        files: names and sizes in bytes.
        reason: what is missing or wrong; None if the model is available.
        pipeline: how a model that embeds does so.
        vision_refusal: why a model with a vision tower does not accept images.
        escapes: whether a link leads out of the model store. None of the model's files may be read then.
    """

    name: str
    repo: str
    path: Path
    source: Source
    state: Availability
    created: int
    files: tuple[tuple[str, int], ...] = ()
    reason: str | None = None
    escapes: bool = False
    architecture: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    task: Task = "generate"
    runner: RunnerName = "text"
    pipeline: Pipeline | None = None
    capabilities: Capabilities = Capabilities()
    vision_refusal: str | None = None
    generation: GenerationDefaults = GenerationDefaults()
    memory: MemoryEstimate = MemoryEstimate()
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which the model is listed, the API name first."""
        return (self.name, *self.aliases)

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.files)
