"""Images in a prompt, as the planner sees them, and the cache of their features.

An image occupies positions of the prompt like text. Its positions hold negative numbers instead of token ids, which are
derived from the image's hash: so the prefix cache tells images apart, and recognizes one that it has seen before.

This module does not use MLX.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osaurusd.worker.engine.prefix_cache import Tokens


@dataclass(frozen=True, eq=False)
class PromptImage:
    """An image at the positions from `start` to `end` of a prompt, text between its parts included.

    Attributes:
        key: identifies the pixels and how they are resized.
        tokens: how many of the positions hold features.
        whole: its positions attend to each other in both directions, so that one pass must process all of them.
        stages: the parts into which the vision tower's work is divided.
        patches: the size of the input of a stage.
        encoding_bytes: memory that a stage needs.
        feature_bytes: memory of the features.
        load: returns what the vision tower takes.
        release: drops what it takes, which is not expected to be needed any more.
    """

    key: bytes
    start: int
    end: int
    tokens: int
    whole: bool
    stages: int
    patches: int
    encoding_bytes: int
    feature_bytes: int
    load: Callable[[], Mapping[str, Any]]
    release: Callable[[], None]


def image_bytes(images: Sequence[PromptImage]) -> int:
    """Return the memory that images need until the prompts are processed; one is encoded at a time."""
    encoding = max((image.encoding_bytes for image in images), default=0)
    return encoding + sum(image.feature_bytes for image in images)


def image_ids(key: bytes, count: int) -> Tokens:
    """Return `count` negative numbers that depend on the image's key and on the position."""
    digest = hashlib.shake_256(key).digest(4 * count)
    ids: Tokens = np.frombuffer(digest, np.int32) | np.int32(-(2**31))
    return ids


class FeatureCache:
    """The features of recent images. Like the prefix cache, it only stores what it is given.

    Args:
        max_bytes: limit of everything that is stored; 0 disables the cache.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._cap = max_bytes
        self._entries: OrderedDict[bytes, Any] = OrderedDict()
        self.nbytes = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def find(self, key: bytes) -> Any | None:
        """Return the features of an image, and mark them as recently used."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def insert(self, key: bytes, features: Any) -> None:
        """Store the features of an image, unless they alone exceed the limit."""
        if features.nbytes > self._cap or key in self._entries:
            return
        self._entries[key] = features
        self.nbytes += features.nbytes
        self._evict_to(self._cap)

    def set_cap(self, nbytes: int) -> None:
        """Limit the cache to `nbytes`, or to its configured maximum if that is lower, evicting entries as needed."""
        self._cap = min(self._max_bytes, nbytes)
        self._evict_to(self._cap)

    def clear(self) -> None:
        self._evict_to(0)

    def _evict_to(self, nbytes: int) -> None:
        while self._entries and self.nbytes > nbytes:
            _, features = self._entries.popitem(last=False)
            self.nbytes -= features.nbytes
