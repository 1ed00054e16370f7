"""The features of a prompt's images, and the embeddings of a prompt that contains images."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from osaurusd.worker.engine.images import FeatureCache, PromptImage
from osaurusd.worker.engine.kv_cache import Cache
from osaurusd.worker.engine.prefix_cache import Tokens


class VisionNetwork(Protocol):
    """A network whose input can be images."""

    def embed(self, tokens: mx.array) -> mx.array:
        """Return the embeddings [1, tokens, dimensions] of token ids [1, tokens]."""

    def begin_encoding(self, image: PromptImage) -> list[mx.array]:
        """Return the results of the vision tower's stages; none is computed yet.

        The last one is the features [1 + deep layers, tokens, dimensions].
        """


class ImageEncoder:
    """Encodes the images of one prompt, stage by stage, and embeds the prompt.

    Args:
        network: the network.
        cache: features of recent images.
        tokens: the prompt.
        images: its images.
    """

    def __init__(
        self, network: VisionNetwork, cache: FeatureCache, tokens: Tokens, images: Sequence[PromptImage]
    ) -> None:
        self._network = network
        self._cache = cache
        self._tokens = tokens
        self._images = images
        self._features: dict[int, mx.array] = {}
        self._stages: list[mx.array] = []

    def encode(self, index: int, start: int, end: int) -> None:
        """Compute the stages from `start` to `end` of an image; with the last one, its features are available."""
        image = self._images[index]
        features = self._cache.find(image.key)
        if features is None:
            if start == 0:
                self._stages = self._network.begin_encoding(image)
            done, self._stages = self._stages[: end - start], self._stages[end - start :]
            mx.eval(done)
            if end < image.stages:
                return
            features = done[-1]
            self._cache.insert(image.key, features)
        self._stages = []
        self._features[index] = features

    def inputs(self, start: int, end: int) -> dict[str, mx.array]:
        """Return what the network takes in addition to the tokens of a range, if that contains parts of images."""
        is_image = self._tokens[start:end] < 0
        if not is_image.any():
            return {}
        deep: list[mx.array] = []
        embeddings = self._network.embed(mx.array(np.where(is_image, 0, self._tokens[start:end]))[None])
        for index, image in enumerate(self._images):
            first, last = max(image.start, start), min(image.end, end)
            positions = first - start + np.flatnonzero(self._tokens[first:last] < 0)
            if len(positions):
                skipped = int((self._tokens[image.start : first] < 0).sum())
                rows = self._features[index][:, skipped : skipped + len(positions)].astype(embeddings.dtype)
                embeddings[0, mx.array(positions)] = rows[0]
                deep.append(rows[1:])
        inputs = {"input_embeddings": embeddings}
        if deep[0].size:
            inputs |= {"deep_features": mx.concatenate(deep, axis=1), "image_mask": mx.array(is_image)[None]}
        return inputs

    @contextlib.contextmanager
    def attention(self, cache: Cache, start: int, end: int) -> Iterator[None]:
        """Have the positions of each whole image in a range attend to each other while the pass over it runs."""
        groups = np.zeros(end - start, np.int32)
        for number, image in enumerate(self._images, 1):
            if image.whole and start <= image.start < end:
                groups[image.start - start : image.end - start] = number
        if not groups.any():
            yield
            return
        together = mx.array((groups[:, None] == groups[None]) & (groups > 0)[None])
        try:
            for layer in cache:
                layer.make_mask = partial(_make_mask, layer.make_mask, together)
            yield
        finally:
            for layer in cache:
                with contextlib.suppress(AttributeError):
                    del layer.make_mask  # the class has another one

    def release(self, end: int) -> None:
        """Drop the features that only the first `end` positions need."""
        for index in [index for index in self._features if self._images[index].end <= end]:
            del self._features[index]


def _make_mask(causal: Any, together: mx.array, count: int, **options: Any) -> mx.array:
    """Return the causal mask of a cache, extended so that the positions of an image see each other."""
    mask: mx.array = causal(count, **{**options, "return_array": True})
    before = mask.shape[-1] - count
    return mx.concatenate([mask[..., :before], mask[..., before:] | together], axis=-1)
