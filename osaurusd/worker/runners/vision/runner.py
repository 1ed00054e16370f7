"""The runner of vision-language models: a text runner whose prompts can contain images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import ChatPrompt, ImagePart, Prompt
from osaurusd.platform.memory import release_free_memory
from osaurusd.rpc import messages
from osaurusd.worker.engine.device import Device
from osaurusd.worker.engine.engine import Limits
from osaurusd.worker.engine.images import PromptImage, image_ids
from osaurusd.worker.engine.kv_cache import CacheLayout
from osaurusd.worker.engine.request import Positions
from osaurusd.worker.frontend import context_length
from osaurusd.worker.frontend.chat_images import ImageTexts, as_text, find_images
from osaurusd.worker.frontend.images import decode_image
from osaurusd.worker.runners.folder import loadable
from osaurusd.worker.runners.loading import Model, apply_limits, load_model_folder
from osaurusd.worker.runners.request_builder import PreparedPrompt, RequestBuilder
from osaurusd.worker.runners.text import TextRunner
from osaurusd.worker.runners.vision.network import VisionNetwork, model_classes
from osaurusd.worker.runners.vision.processor import ImageProcessor, InputBudget, ProcessedImage, WaitingInputs


class VisionRunner(TextRunner):
    """A vision-language model with its engine.

    Args:
        model: the loaded model, whose network is a `VisionNetwork`.
        limits: what its engine may use.
        processor: processes images.
        max_pixels: the largest image that is decoded.
    """

    def __init__(self, model: Model, limits: Limits, processor: ImageProcessor, max_pixels: int) -> None:
        self._processor = processor
        self._max_pixels = max_pixels
        super().__init__(model, limits)

    @classmethod
    def load(cls, frame: messages.Load, on_bytes: Callable[[int], None]) -> "VisionRunner":
        """Load a model; raises whatever `loading.load_model_folder` and transformers raise."""
        model = load_model_folder(frame, on_bytes, get_model_classes=model_classes)
        with loadable(Path(frame.path)) as folder:
            processor = ImageProcessor.load(model.network.config.model_type, folder)
        limits = Limits(
            frame.memory_limit_bytes,
            frame.prefix_cache_bytes,
            frame.max_waiting,
            frame.stall_seconds,
            frame.feature_cache_bytes,
        )
        model = replace(model, network=VisionNetwork(model.network, Device.default()))
        runner = cls(model, limits, processor, frame.max_image_pixels)
        apply_limits(frame, runner.engine.pass_bytes)
        return runner

    def _create_builder(self, model: Model) -> RequestBuilder:
        return VisionRequestBuilder(
            model, self.engine.layout, self.engine.vocabulary, self._processor, self._max_pixels
        )


class VisionRequestBuilder(RequestBuilder):
    """Builds engine requests with images. Safe on any thread.

    Args:
        model, layout, vocabulary: see `RequestBuilder`.
        processor: processes images.
        max_pixels: the largest image that is decoded.
    """

    def __init__(
        self, model: Model, layout: CacheLayout, vocabulary: int, processor: ImageProcessor, max_pixels: int
    ) -> None:
        super().__init__(model, layout, vocabulary)
        self._network: VisionNetwork = model.network
        self._processor = processor
        self._max_pixels = max_pixels
        self._budget = InputBudget()

    def _encode(self, prompt: Prompt, blobs: Sequence[bytes]) -> PreparedPrompt:
        """Encode the prompt, and process its images."""
        if not isinstance(prompt, ChatPrompt):
            return super()._encode(prompt, blobs)
        parts = list(find_images(prompt))
        if not parts:
            return super()._encode(as_text(prompt, self._processor.placeholder, self._processor.image_token), blobs)
        loads = [partial(self._process, part, blobs[part.blob]) for part in parts]
        try:
            images = self._process_all(loads)
        finally:
            release_free_memory()
        texts = ImageTexts(self._processor.placeholder, self._processor.image_token, [each.text for each in images])
        encoded = self._encoder.encode(prompt, texts)
        tokens = list(encoded.tokens)
        for image, places in zip(images, encoded.image_positions, strict=True):
            for place, token in zip(places, image_ids(image.key, len(places)).tolist(), strict=True):
                tokens[place] = token
        placed = list(map(self._place, images, loads, encoded.image_positions))
        grids = [self._network.grid(image.inputs) for image in images] if self._network.has_grid else None
        positions = None if grids is None else _positions(placed, grids, len(tokens))
        return PreparedPrompt(replace(encoded, tokens=tokens), placed, positions)

    def _process_all(self, loads: Sequence[Callable[[], ProcessedImage]]) -> list[ProcessedImage]:
        """Process all images, unless they exceed the context or the memory."""
        images: list[ProcessedImage] = []
        tokens = nbytes = 0
        for load in loads:
            image = load()
            tokens += image.text.count(self._processor.image_token)
            context_length.check_length(tokens, self._context_length, image_tokens=tokens)
            nbytes += image.nbytes
            if nbytes > self._budget.max_bytes:
                raise InvalidRequest(
                    f"the images of the request take more than {self._budget.max_bytes} bytes of memory; send fewer or "
                    "smaller images",
                    location=("prompt",),
                )
            images.append(image)
        return images

    def _process(self, part: ImagePart, data: bytes) -> ProcessedImage:
        location = ("images", part.blob)
        image = decode_image(data, max_pixels=self._max_pixels, location=location)
        try:
            return self._processor.process(image, part.detail)
        except Exception as error:  # processors reject some sizes in many ways
            width, height = image.size
            reason = str(error) or type(error).__name__
            raise InvalidRequest(
                f"the model cannot process an image of {width} x {height} pixels: {reason}", location=location
            ) from error

    def _place(self, image: ProcessedImage, load: Callable[[], ProcessedImage], positions: list[int]) -> PromptImage:
        size = self._network.measure(image.inputs, len(positions))
        waiting = WaitingInputs(image, load, self._budget)
        return PromptImage(
            key=image.key,
            start=positions[0],
            end=positions[-1] + 1,
            tokens=len(positions),
            whole=self._network.whole_images,
            stages=size.stages,
            patches=size.patches,
            encoding_bytes=size.nbytes,
            feature_bytes=len(positions) * self._network.feature_bytes,
            load=waiting,
            release=waiting.release,
        )


def _positions(images: Sequence[PromptImage], grids: Sequence[tuple[int, int]], count: int) -> Positions:
    """Return positions [3, tokens]: those of an image are its rows and columns after the position before it."""
    parts: list[Positions] = []
    end = following = 0
    for image, (rows, columns) in zip(images, grids, strict=True):
        text = image.start - end
        parts.append(np.tile(np.arange(text), (3, 1)) + following)
        following += text
        row, column = np.indices((rows, columns)).reshape(2, -1)
        parts.append(np.stack([np.zeros_like(row), row, column]) + following)
        following += max(rows, columns)
        end = image.end
    return np.concatenate([*parts, np.tile(np.arange(count - end), (3, 1)) + following], axis=1)
