"""Vision-language networks of mlx_vlm, with the interface and the caches of mlx_lm's language models."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

from osaurusd.worker.engine.device import CPU, Device
from osaurusd.worker.engine.images import PromptImage
from osaurusd.worker.engine.kv_cache import Cache
from osaurusd.worker.engine.probe import FUSED_HEAD_DIMENSIONS

_PACKAGE = "mlx_vlm"

# Sections of a config that have a class of their own.
_SECTIONS = ("text", "vision", "perceiver", "projector")

# Parts of a network that rename or transpose weights themselves.
_PARTS = (("VisionModel", "vision_config"), ("LanguageModel", "text_config"))

# The names of vision towers.
_TOWERS = ("vision_tower", "vision_model")

# The positions of an image are its rows and columns.
_GRID = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"})

# The first layers of the language model also add features of layers of the vision tower.
_DEEPSTACK = frozenset({"qwen3_vl"})

# Positions of an image attend to each other in both directions.
_BIDIRECTIONAL = frozenset({"gemma3"})

# What a layer of a vision tower holds in memory at once: multiples of its inputs, of its intermediate results, of its
# attention scores, and of the inputs of the tower.
_HIDDEN_COPIES = 8
_INTERMEDIATE_COPIES = 2
_SCORE_COPIES = 2
_INPUT_COPIES = 2
_FLOAT32_BYTES = 4

# The axes of a batch of images that are divided into tiles.
_TILE_AXES = 5

_CACHES: Mapping[str, Callable[[Any], Any]] = {
    "KVCache": lambda _: KVCache(),
    "RotatingKVCache": lambda cache: RotatingKVCache(max_size=cache.max_size, keep=cache.keep),
    "ArraysCache": lambda cache: ArraysCache(size=len(cache.cache)),
}
"""mlx_lm's counterparts of mlx_vlm's caches."""


def import_model(model_type: str, module: str = "") -> ModuleType:
    """Import mlx_vlm's implementation of an architecture, or one of its modules.

    The package itself is left out: it imports its server, its trainer and its command line, which needs packages that
    the models do not.
    """
    if _PACKAGE not in sys.modules:
        spec = find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError('images need the extra "vision": pip install "osaurusd[vision]"')
        package = ModuleType(_PACKAGE)
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules[_PACKAGE] = package
    name = model_type.replace("-", "_")
    return importlib.import_module(f"{_PACKAGE}.models.{name}{module.format(name)}")


def model_classes(config: dict[str, Any]) -> tuple[Any, Any]:
    """Return the classes of the network and its config, for mlx_lm's `load_model`."""
    implementation = import_model(config["model_type"])

    class Config:
        @staticmethod
        def from_dict(values: dict[str, Any]) -> Any:
            settings = implementation.ModelConfig.from_dict(values)
            for section in (f"{name}_config" for name in _SECTIONS):
                kind = getattr(implementation, section.title().replace("_", ""), None)
                if kind is not None and isinstance(values.get(section), dict):
                    setattr(settings, section, kind.from_dict(values[section]))
            return settings

    class Network(implementation.Model):  # type: ignore[misc,name-defined]
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            if hasattr(implementation.Model, "sanitize"):
                weights = super().sanitize(weights)
            for name, section in _PARTS:
                part = getattr(implementation, name)
                if hasattr(part, "sanitize"):
                    weights = part(getattr(self.config, section)).sanitize(weights)
            return weights

    return Network, Config


class ImageSize(NamedTuple):
    """The work of the vision tower for an image.

    Attributes:
        stages: the parts into which it is divided: one for each layer and tile.
        patches: the size of the input of a stage.
        nbytes: memory that a stage needs.
    """

    stages: int
    patches: int
    nbytes: int


class VisionNetwork:
    """A vision-language network with the interface of mlx_lm's language models.

    Args:
        model: mlx_vlm's network.
        device: the device that MLX uses.

    Attributes:
        language_model: its language model.
        feature_bytes: the size of the features at one position.
        has_grid: whether the positions of an image are its rows and columns.
        whole_images: whether positions of an image attend to each other in both directions.
    """

    def __init__(self, model: Any, device: Device = CPU) -> None:
        self._model = model
        self._device = device
        self.language_model = model.language_model
        self.args = model.config.text_config
        self.whole_images = model.config.model_type in _BIDIRECTIONAL
        self.has_grid = model.config.model_type in _GRID
        self._layers = _find_layers(model)
        self._stages = max(len(self._layers), 1)
        self._has_deepstack = model.config.model_type in _DEEPSTACK
        depth = len(model.config.vision_config.deepstack_visual_indexes) if self._has_deepstack else 0
        embedding = self.embed(mx.array([[0]]))
        self._dtype = embedding.dtype
        self.feature_bytes = (1 + depth) * embedding.nbytes

    @property
    def layers(self) -> list[Any]:
        layers: list[Any] = self.language_model.layers
        return layers

    @property
    def image_token(self) -> int:
        """The id of the token that stands for the features of an image."""
        config = self._model.config
        return int(config.image_token_id if self.has_grid else config.image_token_index)

    def make_cache(self) -> Cache:
        """Return an empty cache with mlx_lm's classes, which can be merged, copied and restored."""
        if not hasattr(self.language_model, "make_cache"):
            return [KVCache() for _ in self.layers]
        return [_CACHES[type(cache).__name__](cache) for cache in self.language_model.make_cache()]

    def measure(self, image: Mapping[str, Any], tokens: int) -> ImageSize:
        """Return the size of the vision tower's work for an image with this many tokens."""
        parts = self._split(image, tokens)
        config = self._model.config.vision_config
        pixels = max(inputs["pixel_values"].size for inputs, _ in parts)
        if self.has_grid:
            patches, heads = len(image["pixel_values"]), config.num_heads
            hidden = getattr(config, "embed_dim", config.hidden_size)
            intermediate = getattr(config, "intermediate_size", None) or int(hidden * config.mlp_ratio)
        else:
            patches, heads = max(pixels // (config.num_channels * config.patch_size**2), 1), config.num_attention_heads
            hidden, intermediate = config.hidden_size, config.intermediate_size
        per_patch = _HIDDEN_COPIES * hidden + _INTERMEDIATE_COPIES * intermediate
        is_fused = self._device.is_gpu and hidden // heads in FUSED_HEAD_DIMENSIONS
        scores = 0 if is_fused else _SCORE_COPIES * patches**2 * heads
        copied = _INPUT_COPIES * sum(value.nbytes for value in image.values())
        return ImageSize(len(parts) * self._stages, patches, copied + _FLOAT32_BYTES * (patches * per_patch + scores))

    def grid(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """Return how many rows and columns of tokens an image has, if its positions are those."""
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        size = self._model.config.vision_config.spatial_merge_size
        return rows // size, columns // size

    def __call__(
        self,
        tokens: mx.array,
        cache: Cache,
        input_embeddings: mx.array | None = None,
        position_ids: mx.array | None = None,
        position_deltas: mx.array | None = None,
        deep_features: mx.array | None = None,
        image_mask: mx.array | None = None,
    ) -> mx.array:
        """Return logits [rows, tokens, vocabulary].

        Args:
            tokens: token ids [rows, tokens].
            cache: what precedes them.
            input_embeddings: their embeddings, if there are images among them.
            position_ids: their positions [3, rows, tokens], if there are images among them.
            position_deltas: the difference between position and length for each row [rows]; by default 0.
            deep_features: what the first layers add for images [layers, image tokens, dimensions].
            image_mask: which tokens are those of images [rows, tokens].
        """
        options: dict[str, Any] = {}
        if deep_features is not None:
            options |= {"deepstack_visual_embeds": list(deep_features), "visual_pos_masks": image_mask}
        if self.has_grid:
            options["position_ids"] = (
                _text_positions(tokens, cache, position_deltas) if position_ids is None else position_ids
            )
        logits: mx.array = self.language_model(tokens, inputs_embeds=input_embeddings, cache=cache, **options).logits
        return logits

    def embed(self, tokens: mx.array) -> mx.array:
        """Return the embeddings [1, tokens, dimensions] of token ids [1, tokens]."""
        embeddings: mx.array = self._model.get_input_embeddings(tokens).inputs_embeds
        return embeddings

    def begin_encoding(self, image: PromptImage) -> list[mx.array]:
        """Return the results of the vision tower's stages; none is computed yet.

        The last one is the features [1 + deep layers, tokens, dimensions].
        """
        stages: list[mx.array] = []
        features = []
        for inputs, tokens in self._split(image.load(), image.tokens):
            arrays = {name: mx.array(value) for name, value in inputs.items()}
            with self._recorded_layers() as outputs:
                features.append(self._describe_features(arrays, tokens))
            # A layer that is not used has no output.
            layers = outputs[: self._stages - 1]
            stages += [*layers, *features[-1:] * (self._stages - len(layers))]
        return [*stages[:-1], mx.concatenate(features, axis=1).astype(self._dtype)]

    def _describe_features(self, inputs: dict[str, mx.array], tokens: int) -> mx.array:
        """Return the features [1 + deep layers, tokens, dimensions], which are not computed yet."""
        if self._has_deepstack:
            tower = self._model.vision_tower
            pixels = inputs["pixel_values"].astype(tower.patch_embed.proj.weight.dtype)
            features, deep = tower(pixels, inputs["image_grid_thw"])
            return mx.stack([features, *deep])
        # A prompt of image tokens only is replaced by the features.
        prompt = mx.full((1, tokens), self.image_token, mx.int32)
        embedded = self._model.get_input_embeddings(prompt, mask=mx.ones((1, tokens)), **inputs)
        return embedded.inputs_embeds  # type: ignore[no-any-return]

    def _split(self, inputs: Mapping[str, Any], tokens: int) -> list[tuple[Mapping[str, Any], int]]:
        """Split the inputs for an image into its tiles, with the number of tokens of each."""
        pixels = inputs["pixel_values"]
        if pixels.ndim == _TILE_AXES:
            count = pixels.shape[1]
            tiles = [{name: value[:, tile : tile + 1] for name, value in inputs.items()} for tile in range(count)]
            return [(tile, tokens // count) for tile in tiles]
        if (shapes := inputs.get("spatial_shapes")) is None:
            return [(inputs, tokens)]
        factor = self._model.config.downsample_factor
        counts = np.prod(-(-shapes // factor), axis=1).tolist()
        tiles = [{name: value[tile : tile + 1] for name, value in inputs.items()} for tile in range(len(shapes))]
        return list(zip(tiles, counts, strict=True))

    @contextlib.contextmanager
    def _recorded_layers(self) -> Iterator[list[mx.array]]:
        """Collect the outputs of the vision tower's layers while the computation is described."""
        outputs: list[mx.array] = []
        layers = list(self._layers)
        self._layers[:] = [_Recorder(layer, outputs) for layer in layers]
        try:
            yield outputs
        finally:
            self._layers[:] = layers


class _Recorder:
    """A layer that also appends its output to a list."""

    def __init__(self, layer: Any, outputs: list[mx.array]) -> None:
        self._layer = layer
        self._outputs = outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._layer(*args, **kwargs)
        self._outputs.append(output[0] if isinstance(output, tuple) else output)
        return output


def _text_positions(tokens: mx.array, cache: Cache, deltas: mx.array | None) -> mx.array:
    """Return the positions [3, rows, tokens] of text that follows what is in the cache."""
    rows, count = tokens.shape
    first = mx.broadcast_to(mx.array(cache[0].offset), (rows,))
    positions = (first if deltas is None else first + deltas)[:, None] + mx.arange(count)
    return mx.broadcast_to(positions, (3, rows, count))


def _find_layers(model: Any) -> list[Any]:
    """Return the vision tower's list of layers: the longest list of modules in it. Changes to it affect the tower."""
    tower = next((getattr(model, name) for name in _TOWERS if hasattr(model, name)), None)
    if tower is None:
        return []
    lists = [
        value
        for _, module in tower.named_modules()
        for value in module.values()
        if isinstance(value, list) and value and all(isinstance(each, Module) for each in value)
    ]
    return max(lists, key=len, default=[])
