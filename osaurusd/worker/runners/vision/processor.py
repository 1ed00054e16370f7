"""Image processing: which text stands for an image in a prompt, and what the vision tower takes.

The processors are those of mlx_vlm. They expand the placeholder of an image in a text and tokenize the result, for all
images of a prompt at once. Here they process each image separately, and a stand-in for the tokenizer returns the text.
"""

import copy
import hashlib
import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osaurusd.errors import QueueFull
from osaurusd.inference.request import Detail
from osaurusd.worker.runners.vision.network import import_model

# The longest side of an image with low detail, for families that keep its size otherwise.
LOW_DETAIL_EDGE = 512

# An image with 17 tiles of 512 pixels takes 70 MB.
MAX_WAITING_BYTES = 1024 * 1024 * 1024

# Hashing an image in parts avoids a copy of all its pixels.
_HASHED_ROWS = 256

Inputs = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class ProcessedImage:
    """An image that is ready for the vision tower.

    Attributes:
        key: identifies its pixels and how they are resized.
        text: replaces its placeholder in the prompt.
        inputs: what the vision tower takes.
    """

    key: bytes
    text: str
    inputs: Inputs

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.inputs.values())


class ImageProcessor:
    """Processes images for one model. Safe on any thread.

    Args:
        processor: mlx_vlm's processor of the model.
    """

    def __init__(self, processor: Any) -> None:
        tokenizer = processor.tokenizer
        # Gemma's templates and processor mark an image by the token that begins it.
        self.placeholder: str = getattr(processor, "boi_token", None) or processor.image_token
        self.image_token: str = tokenizer.convert_ids_to_tokens(processor.image_token_id)
        processor.tokenizer = _TextTokenizer(tokenizer)
        low = _with_low_detail(processor)
        self._processors = {"auto": processor, "high": processor, "low": low or processor}
        self._regimes = {"auto": b"high", "high": b"high", "low": b"low" if low else b"high"}

    @classmethod
    def load(cls, model_type: str, folder: Path) -> "ImageProcessor":
        """Load the processor of a model; raises whatever transformers raises for files that it cannot read."""
        # mlx_vlm sets options of transformers that are deprecated.
        logging.getLogger("transformers").setLevel(logging.ERROR)
        module = import_model(model_type, ".processing_{}")
        others = ("ImageProcessor", "VideoProcessor")
        names = [name for name in vars(module) if name.endswith("Processor") and not name.endswith(others)]
        return cls(getattr(module, names[0]).from_pretrained(str(folder), trust_remote_code=False))

    def process(self, image: Image.Image, detail: Detail) -> ProcessedImage:
        """Resize and normalize an image, and expand its placeholder."""
        outputs = dict(self._processors[detail](images=[image], text=self.placeholder))
        expanded = outputs.pop(_TextTokenizer.OUTPUT)
        inputs = {name: _to_array(value) for name, value in outputs.items()}
        if "spatial_shapes" in inputs and inputs["spatial_shapes"].prod(axis=1).max() > inputs["pixel_values"].shape[1]:
            raise ValueError("one side is too long for the other")  # the processor of LFM2-VL cuts it
        return ProcessedImage(_key(image, self._regimes[detail]), expanded.text, inputs)


class InputBudget:
    """Limits the memory of inputs that wait for the vision tower. Safe on any thread.

    Args:
        max_bytes: the limit.
    """

    def __init__(self, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self.max_bytes = max_bytes
        self._used = 0
        self._lock = threading.Lock()

    def reserve(self, nbytes: int) -> None:
        """Count inputs.

        Raises:
            QueueFull: there is no room for them beside those of other requests.
        """
        with self._lock:
            if self._used + nbytes > self.max_bytes:
                raise QueueFull("too many images are waiting for this model; try again later")
            self._used += nbytes

    def release(self, nbytes: int) -> None:
        with self._lock:
            self._used -= nbytes


class WaitingInputs:
    """The inputs for an image. They are kept until they are used, and computed again if they are needed once more.

    Args:
        image: the processed image.
        process: processes it again.
        budget: counts the inputs while they are kept.

    Raises:
        QueueFull: the budget has no room for them.
    """

    def __init__(self, image: ProcessedImage, process: Callable[[], ProcessedImage], budget: InputBudget) -> None:
        budget.reserve(image.nbytes)
        self._release = weakref.finalize(self, budget.release, image.nbytes)
        self._inputs: Inputs | None = image.inputs
        self._process = process

    def __call__(self) -> Inputs:
        """Return the inputs."""
        inputs = self._inputs
        self.release()
        return self._process().inputs if inputs is None else inputs

    def release(self) -> None:
        """Drop the inputs."""
        self._inputs = None
        self._release()


@dataclass(frozen=True)
class _Text:
    text: str


class _TextTokenizer:
    """Stands in for a processor's tokenizer, and returns the text instead of its tokens."""

    OUTPUT = "expanded_text"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: list[str], **_: Any) -> dict[str, _Text]:
        return {self.OUTPUT: _Text(text[0])}


def _with_low_detail(processor: Any) -> Any | None:
    """Return a processor whose images have fewer tokens; None if the family has one resize regime only."""
    low, images = copy.copy(processor), copy.copy(processor.image_processor)
    low.image_processor = images
    if getattr(images, "do_image_splitting", False):
        images.do_image_splitting = False
        return low
    if getattr(images, "max_pixels", 0) > LOW_DETAIL_EDGE**2:
        images.max_pixels = LOW_DETAIL_EDGE**2
        return low
    size = getattr(images, "size", None)
    if isinstance(size, Mapping) and set(size) == {"longest_edge"} and size["longest_edge"] > LOW_DETAIL_EDGE:
        images.size = {"longest_edge": LOW_DETAIL_EDGE}
        return low
    return None


def _to_array(value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    narrower = {"f": np.float32, "i": np.int32}.get(array.dtype.kind)
    return array if narrower is None else array.astype(narrower)


def _key(image: Image.Image, regime: bytes) -> bytes:
    digest = hashlib.sha256(f"{image.size}".encode())
    for top in range(0, image.height, _HASHED_ROWS):
        digest.update(image.crop((0, top, image.width, min(top + _HASHED_ROWS, image.height))).tobytes())
    digest.update(regime)
    return digest.digest()
