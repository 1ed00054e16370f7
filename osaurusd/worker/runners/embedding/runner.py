"""The runner of models that embed texts, and of sequence classifiers that score pairs of texts."""

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from osaurusd.errors import InvalidRequest
from osaurusd.inference.retrieval import EmbedRequest, Pipeline, RerankRequest, Scores, Vectors
from osaurusd.rpc import messages
from osaurusd.wire.errors import as_json
from osaurusd.worker.engine.device import Device
from osaurusd.worker.runners.embedding import bert, decoder, modernbert
from osaurusd.worker.runners.embedding.cores import Cores
from osaurusd.worker.runners.embedding.engine import EncoderEngine, EncoderRequest
from osaurusd.worker.runners.embedding.inputs import Batch, TokenSequence
from osaurusd.worker.runners.embedding.pooling import Pooler, shorten
from osaurusd.worker.runners.embedding.tokenizing import InputEncoder
from osaurusd.worker.runners.folder import loadable
from osaurusd.worker.runners.loading import apply_limits, load_network

EMBEDDERS: Mapping[str, Any] = {
    "bert": bert,
    "roberta": bert,
    "xlm-roberta": bert,
    "modernbert": modernbert,
    "qwen3": decoder,
    "gemma3_text": decoder,
}
"""The implementation of each architecture that embeds."""

CLASSIFIERS: Mapping[str, Any] = {
    "bert": bert,
    "roberta": bert,
    "xlm-roberta": bert,
    "modernbert": modernbert,
}
"""The implementation of each architecture that classifies sequences."""

# Arrays of a layer that exist at the same time, in multiples of the hidden and the intermediate size.
_HIDDEN_ARRAYS = 8
_INTERMEDIATE_ARRAYS = 3
_FLOAT32_BYTES = 4

_NICE = 5


class EmbeddingRunner:
    """An encoder with its engine.

    Args:
        frame: the request to load the model.
        network: the loaded network.
        config: the model's `config.json`.
        dtype: the type in which the weights are held.
        folder: the model's folder.
    """

    def __init__(self, frame: messages.Load, network: Any, config: Mapping[str, Any], dtype: str, folder: Path) -> None:
        device = Device.default()
        self._pipeline = frame.pipeline
        self._pooler = Pooler(folder, frame.pipeline) if frame.pipeline else None
        context = min(filter(None, (frame.context_length, _positions(config), _pipeline_tokens(frame.pipeline))))
        self._encoder = InputEncoder(folder, config["vocab_size"], context, frame.pipeline)
        self._network = network
        self._cores = Cores(1 if device.is_gpu else None)
        self.engine = EncoderEngine(
            self._encode,
            pass_bytes=partial(_pass_bytes, config, context, device),
            max_waiting=frame.max_waiting,
            device=device,
        )
        self.engine.set_limit(frame.memory_limit_bytes)
        self.loaded = messages.Loaded(
            device=device.name,
            dtype=dtype,
            memory_bytes=mx.get_active_memory(),
            batched=True,
            serving_bytes=self.engine.serving_bytes,
            working_set_bytes=device.working_set_bytes,
        )

    @classmethod
    def load(cls, frame: messages.Load, on_bytes: Callable[[int], None]) -> "EmbeddingRunner":
        """Load a model.

        Raises:
            OSError, ValueError, RuntimeError and whatever else mlx_lm raises for files it cannot read.
        """
        device = Device.default()
        apply_limits(frame)
        with loadable(Path(frame.path)) as folder:
            find = partial(find_classes, frame.task)
            network, config, dtype = load_network(folder, frame, device, on_bytes, get_model_classes=find)
            runner = cls(frame, network, config, dtype, folder)
        if not device.is_gpu:
            _lower_priority()
        apply_limits(frame, runner.engine.pass_bytes)
        return runner

    def prepare(self, frame: messages.Request, _: Sequence[bytes] = ()) -> EncoderRequest:
        """Tokenize the inputs of a request. Safe on any thread.

        Raises:
            OsaurusError: the request is invalid.
        """
        match frame:
            case messages.Embed(id=id_, request=request) if self._pipeline is not None:
                self._check_dimensions(request, self._pipeline)
                encoded = self._encoder.encode(request)
                return EncoderRequest(id_, encoded.sequences, partial(self._vectors, request, encoded.truncated))
            case messages.Rerank(id=id_, request=request) if self._pipeline is None:
                _check_instruction(request)
                pairs = self._encoder.encode_pairs(request)
                return EncoderRequest(id_, pairs.sequences, partial(_scores, pairs.truncated))
        raise InvalidRequest("the model does not support this kind of request")

    def apply_limits(self, frame: messages.Limits) -> None:
        """Apply new memory limits."""
        apply_limits(frame, self.engine.pass_bytes)
        self.engine.set_limit(frame.memory_limit_bytes)

    def close(self) -> None:
        """End the threads of the runner."""
        self._cores.close()

    def _encode(self, sequences: Sequence[TokenSequence]) -> np.ndarray:
        return self._cores.encode(sequences, self._encode_part)

    def _encode_part(self, sequences: Sequence[TokenSequence]) -> np.ndarray:
        batch = Batch(sequences)
        output = self._network(batch)
        rows = output if self._pooler is None else self._pooler(output, batch)
        return np.array(rows.astype(mx.float32))

    def _check_dimensions(self, request: EmbedRequest, pipeline: Pipeline) -> None:
        if request.dimensions is None:
            return
        supported = pipeline.matryoshka_dimensions
        if not pipeline.matryoshka:
            raise InvalidRequest("the model was not trained for shorter vectors; omit it", location=("dimensions",))
        if supported and request.dimensions not in supported:
            listed = ", ".join(map(str, supported))
            raise InvalidRequest(f"the model supports {listed}, not {request.dimensions}", location=("dimensions",))

    def _vectors(self, request: EmbedRequest, truncated: list[int], rows: np.ndarray) -> Vectors:
        if request.dimensions is not None and request.dimensions > rows.shape[1]:
            raise InvalidRequest(
                f"the model's vectors have {rows.shape[1]} dimensions, not {request.dimensions}",
                location=("dimensions",),
            )
        normalize = self._pipeline is not None and self._pipeline.normalize
        vectors = shorten(rows, request.dimensions, normalize=normalize)
        return Vectors(dimensions=vectors.shape[1], truncated=truncated, data=vectors.tobytes())


def _lower_priority() -> None:
    """Prefer models that generate text, whose clients read along, where all share the processor's cores."""
    threads = Path("/proc/self/task")
    if threads.is_dir():  # Linux, where a priority belongs to a thread
        for thread in threads.iterdir():
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), _NICE)


def _check_instruction(request: RerankRequest) -> None:
    if request.instruction:
        raise InvalidRequest(
            "the model is a sequence classifier, which accepts no instruction; omit it", location=("instruction",)
        )


def _scores(truncated: list[int], logits: np.ndarray) -> Scores:
    """Return the sigmoid of each logit."""
    return Scores(values=[1 / (1 + math.exp(-max(float(each), -700.0))) for each in logits], truncated=truncated)


def find_classes(task: str, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the classes of a network and its arguments, as mlx_lm's `load_model` expects them.

    Raises:
        ValueError: the architecture is not supported.
    """
    module = (EMBEDDERS if task == "embed" else CLASSIFIERS).get(config["model_type"])
    if module is None:
        raise ValueError(f"the architecture {as_json(config['model_type'])} does not support the task {as_json(task)}")
    return (module.Model if task == "embed" else module.Classifier), module.ModelArgs


def _positions(config: Mapping[str, Any]) -> int:
    """Return the length of the network."""
    positions = int(config.get("max_position_embeddings", 8192))
    if config["model_type"] in ("roberta", "xlm-roberta"):
        positions -= bert.ModelArgs.from_dict(config).first_position
    return positions


def _pipeline_tokens(pipeline: Pipeline | None) -> int | None:
    return pipeline.max_tokens if pipeline else None


def _pass_bytes(config: Mapping[str, Any], context: int, device: Device, tokens: int) -> int:
    """Return the memory of the intermediates of a pass, at most: all sequences are as long as the context allows."""
    intermediate = int(config.get("intermediate_size", 4 * config["hidden_size"]))
    widths = _HIDDEN_ARRAYS * int(config["hidden_size"]) + _INTERMEDIATE_ARRAYS * intermediate
    # GPU kernels do not keep the attention weights.
    attention = 0 if device.is_gpu else 2 * int(config["num_attention_heads"]) * min(context, tokens)
    return tokens * (widths + attention) * _FLOAT32_BYTES
