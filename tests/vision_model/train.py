"""Train the vision tower and the connector: `python -m tests.vision_model.train`.

It takes about 15 minutes of one core, and replaces `weights.safetensors`. The language model takes no part: the network
learns to turn a drawing into the embeddings of the words that describe it. With `--steps 0`, only measure how often the
weights recognize what held-back drawings show.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from PIL import Image

from osaurusd.imports.worker.importer import import_model
from osaurusd.worker.runners.vision.network import import_model as import_implementation
from tests import starter_model
from tests.vision_model import network
from tests.vision_model.drawings import VALIDATION, Drawing, draw, draw_random, held_back
from tests.vision_model.folder import WEIGHTS, build_config, encode

SEED = 0
BATCH = 32
STEPS = 3600
DRAWINGS = 40_000

RATE, WARM_UP = 1.5e-3, 100
"""The highest learning rate, and the number of steps until it is reached. Then it falls to nearly zero."""

EXACT_FROM = 3000
"""The step from which the activation function is exact, instead of a faster approximation."""

WEIGHT_DECAY = 0.02

MARGIN = 6
"""Drawings are larger than the network's images by this number of pixels, and are cropped at random."""

DISTANCE_SCALE = 48.0
WORDS = mx.array([1, 2, 3, 3, 5, 7])
"""Positions of the words that differ. The shape or digit is the hardest to learn, and counts twice."""

VALIDATION_DRAWINGS, TEST_DRAWINGS = 300, 600
IMPLEMENTATION = import_implementation("idefics3")


class Network(nn.Module):
    """The vision part of the model, faster to train than the implementation that runs it, and equal to it.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        settings = IMPLEMENTATION.ModelConfig.from_dict(config)
        settings.text_config = IMPLEMENTATION.TextConfig.from_dict(config["text_config"])
        settings.vision_config = IMPLEMENTATION.VisionConfig.from_dict(config["vision_config"])
        self.vision_model = IMPLEMENTATION.VisionModel(settings.vision_config)
        self.connector = IMPLEMENTATION.idefics3.Idefics3Connector(settings)
        self.exact = False
        self._positions = find_positions(self.vision_model.embeddings)
        self.vision_model.embeddings.position_embedding.weight *= 0.2
        self.connector.modality_projection.proj.weight *= 0.15

    def __call__(self, pixels: mx.array) -> mx.array:
        """Return the features [images, tokens, dimensions] of pixels [images, rows, columns, channels]."""
        embeddings = self.vision_model.embeddings
        kernel = embeddings.patch_embedding.weight
        hidden = to_patches(pixels) @ kernel.reshape(kernel.shape[0], -1).T + embeddings.patch_embedding.bias
        hidden = hidden + embeddings.position_embedding.weight[self._positions]
        for layer in self.vision_model.encoder.layers:
            hidden = hidden + layer.self_attn(layer.layer_norm1(hidden))
            wide = layer.mlp.fc1(layer.layer_norm2(hidden))
            hidden = hidden + layer.mlp.fc2(nn.gelu(wide) if self.exact else wide * mx.sigmoid(1.702 * wide))
        features: mx.array = self.connector(self.vision_model.post_layernorm(hidden))
        return features


def find_positions(embeddings: nn.Module) -> mx.array:
    """Return the position that the implementation assigns to each patch. Rounding errors repeat some."""
    patches = network.IMAGE_EDGE // network.PATCH_EDGE
    original = embeddings.parameters()
    numbers = mx.arange(patches**2, dtype=mx.float32)[:, None]
    embeddings.apply(mx.zeros_like)
    embeddings.position_embedding.weight = mx.broadcast_to(numbers, embeddings.position_embedding.weight.shape)
    image = mx.zeros((1, network.IMAGE_EDGE, network.IMAGE_EDGE, 3))
    positions = embeddings(image, mx.ones((1, patches, patches), dtype=mx.bool_))[0, :, 0]
    mx.eval(positions)
    embeddings.update(original)
    return positions.astype(mx.int32)


def to_patches(pixels: mx.array) -> mx.array:
    count, edge = network.IMAGE_EDGE // network.PATCH_EDGE, network.PATCH_EDGE
    grid = pixels.reshape(-1, count, edge, count, edge, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(-1, count**2, edge * edge * 3)


def normalize(pixels: np.ndarray) -> mx.array:
    return mx.array(pixels).astype(mx.float32) / 127.5 - 1


class Captions:
    """The tokens of captions, and their embeddings.

    Args:
        source: the folder of the language model.
    """

    def __init__(self, source: Path) -> None:
        self._source = source
        self._known: dict[str, list[int]] = {}
        model, _ = load_model(source)
        self.embeddings = model.model.embed_tokens(mx.arange(model.args.vocab_size)).astype(mx.float32)

    def tokens(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = encode(self._source, text)
        return self._known[text]


def batches(captions: Captions, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pixels and caption tokens of random crops of drawings."""
    edge = network.IMAGE_EDGE
    drawings = [draw_random(Random(seed), edge=edge + MARGIN) for seed in range(DRAWINGS)]
    tokens = np.array([captions.tokens(network.caption(drawing)) for drawing in drawings])
    pixels = np.stack([np.asarray(drawing.image) for drawing in drawings])
    rng = np.random.default_rng(SEED)
    order = np.concatenate([rng.permutation(DRAWINGS) for _ in range(steps * BATCH // DRAWINGS + 1)])
    for chosen in order[: steps * BATCH].reshape(steps, BATCH):
        corners = rng.integers(0, MARGIN + 1, (BATCH, 2))
        crops = [pixels[each, y : y + edge, x : x + edge] for each, (y, x) in zip(chosen, corners, strict=True)]
        yield np.stack(crops), tokens[chosen]


def batch_of(captions: Captions, drawings: Sequence[Drawing]) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of drawings, as the model's processor resizes them, and their caption tokens."""
    size = (network.IMAGE_EDGE, network.IMAGE_EDGE)
    images = [np.asarray(drawing.image.resize(size, Image.Resampling.LANCZOS)) for drawing in drawings]
    return np.stack(images), np.array([captions.tokens(network.caption(drawing)) for drawing in drawings])


class Trainer:
    """Trains the network.

    Args:
        model: the network.
        captions: the captions of drawings.
        vocabulary: the tokens of captions.
        steps: the number of batches, which determines the learning rate.
    """

    def __init__(self, model: Network, captions: Captions, vocabulary: list[int], steps: int) -> None:
        self._model = model
        self._numbers = {token: number for number, token in enumerate(vocabulary)}
        self._embeddings = captions.embeddings[mx.array(vocabulary)]
        self._scale = mx.sqrt(mx.mean(self._embeddings**2))
        warm_up = optimizers.linear_schedule(1e-5, RATE, WARM_UP)
        decay = optimizers.cosine_decay(RATE, steps - WARM_UP, RATE * 0.02)
        rate = optimizers.join_schedules([warm_up, decay], [WARM_UP])
        self._optimizer = optimizers.AdamW(learning_rate=rate, weight_decay=WEIGHT_DECAY)
        self._loss_and_gradient = nn.value_and_grad(model, self._loss)

    def step(self, pixels: np.ndarray, tokens: np.ndarray) -> float:
        """Learn from a batch, and return the loss."""
        loss, gradient = self._loss_and_gradient(normalize(pixels), self._number(tokens))
        gradient, _ = optimizers.clip_grad_norm(gradient, 1.0)
        self._optimizer.update(self._model, gradient)
        mx.eval(self._model.state, self._optimizer.state, loss)
        return float(loss.item())

    def recognize(self, pixels: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return whether the closest embedding is the right one [drawings, positions]."""
        closest = mx.argmax(self._closeness(self._model(normalize(pixels))), axis=-1)
        return np.array(closest == self._number(tokens))

    def _loss(self, pixels: mx.array, numbers: mx.array) -> mx.array:
        features = self._model(pixels)
        error = mx.mean(((features - self._embeddings[numbers]) / self._scale) ** 2)
        scores = self._closeness(features)[:, WORDS]
        return nn.losses.cross_entropy(scores, numbers[:, WORDS], reduction="mean") + error

    def _closeness(self, features: mx.array) -> mx.array:
        """Return the negative squared distances to the embeddings, without the part that is the same for all."""
        features, embeddings = features / self._scale, self._embeddings / self._scale
        return (2 * (features @ embeddings.T) - mx.sum(embeddings**2, axis=-1)) / DISTANCE_SCALE

    def _number(self, tokens: np.ndarray) -> mx.array:
        return mx.array(np.vectorize(self._numbers.__getitem__)(tokens))


def train(model: Network, captions: Captions, steps: int) -> None:
    validation = batch_of(captions, [draw(VALIDATION + number) for number in range(VALIDATION_DRAWINGS)])
    trainer = Trainer(model, captions, sorted(set(validation[1].ravel().tolist())), steps)
    for number, batch in enumerate(batches(captions, steps), 1):
        model.exact = number > EXACT_FROM
        loss = trainer.step(*batch)
        if number % 100 == 0:
            accuracy = ", ".join(f"{value:.3f}" for value in trainer.recognize(*validation).mean(axis=0)[1::2])
            print(f"step {number}: loss {loss:.3f}; color, shape or digit, count, side: {accuracy}", flush=True)


def measure(model: Network, captions: Captions) -> dict[str, float]:
    """Return how often the network recognizes what drawings show that had no part in its training."""
    drawings = list(held_back(TEST_DRAWINGS))
    pixels, tokens = batch_of(captions, drawings)
    right = Trainer(model, captions, sorted(set(tokens.ravel().tolist())), STEPS).recognize(pixels, tokens)
    is_digit = np.array([drawing.digit is not None for drawing in drawings])
    return {
        "color": right[:, 1].mean(),
        "shape": right[~is_digit, 3].mean(),
        "digit": right[is_digit, 3].mean(),
        "count": right[~is_digit, 5].mean(),
        "side": right[:, 7].mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.vision_model.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=STEPS, help="0: measure the weights that there are")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        import_model(starter_model.fetch(), Path(folder), lambda *_: None)
        source = Path(folder)
        captions = Captions(source)
        mx.random.seed(SEED)
        model = Network(build_config(source))
        if options.steps:
            train(model, captions, options.steps)
            weights = {name: value.astype(mx.float16) for name, value in tree_flatten(model.parameters())}
            mx.save_safetensors(str(options.output), weights, {"format": "mlx"})
        model.exact = True
        model.load_weights(str(options.output))
        model.set_dtype(mx.float32)  # in float16, which the file has, processors are slow
        accuracy = ", ".join(f"{topic} {value:.1%}" for topic, value in measure(model, captions).items())
        print(f"{TEST_DRAWINGS} held-back drawings: {accuracy}")


if __name__ == "__main__":
    main()
