"""Random chats with images: the answers do not depend on what the worker has cached, or serves at the same time.

The weights are random, so that every token of a prompt affects the output.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from tests import daemons
from tests.images import data_url, encode
from tests.models import skip_without_mlx_vlm
from tests.osaurusd.worker.runners.vision.tiny_models import tiny_vision_model

skip_without_mlx_vlm()

MODEL = "tiny-vision"
FAMILIES = ("idefics3", pytest.param("gemma3", marks=pytest.mark.long))
OUTPUT_TOKENS = 6
CONCURRENCY = 4
CHATS = 12

# Room for a few prompts and images only, so that the caches evict.
SMALL_CACHES = "[worker]\nprefix_cache_bytes = 200000\n[vision]\nfeature_cache_bytes = 3000\n"
NO_CACHES = "[worker]\nprefix_cache_bytes = 0\n[vision]\nfeature_cache_bytes = 1\n"

WORDS = ("red", "blue", "circle", "what", "where", "which", "is", "the", "near", "above", "left", "and", "not")

Content = list[dict[str, Any]]


def make_images() -> list[str]:
    """Create images of several sizes. The first two have the same size and differ in one block."""
    blocks = [np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8) for seed in range(4)]
    blocks[1] = blocks[0].copy()
    blocks[1][2, 2] ^= 255
    sizes = [(32, 32), (32, 32), (64, 24), (20, 90)]
    images = [
        Image.fromarray(each).resize(size, Image.Resampling.NEAREST) for each, size in zip(blocks, sizes, strict=True)
    ]
    return [data_url(encode(image)) for image in images]


class Histories:
    """Creates chats: new ones, continued ones, and ones that are edited somewhere.

    Args:
        seed: determines every choice.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._images = make_images()
        self._chats: list[list[Content]] = []

    def next(self) -> list[dict[str, Any]]:
        """Return the messages of the next chat."""
        turns = list(self._random.choice(self._chats)) if self._chats and self._random.random() < 0.75 else []
        if turns and self._random.random() < 0.6:
            self._edit(turns)
        else:
            # The roles alternate, and the last message is the user's.
            turns = [*turns, self._content(0), self._content(0.4)] if turns else [self._content(0.7)]
        self._chats.append(turns)
        roles = ("user", "assistant")
        return [{"role": roles[number % 2], "content": content} for number, content in enumerate(turns)]

    def _edit(self, turns: list[Content]) -> None:
        position = self._random.randrange(0, len(turns), 2)
        del turns[position + 1 + 2 * self._random.randint(0, len(turns)) :]
        content = list(turns[position])
        action = self._random.choice(("replace", "swap", "insert"))
        if action == "swap":
            self._random.shuffle(content)
        elif action == "insert":
            content.insert(self._random.randint(0, len(content)), self._image())
        else:
            content[self._random.randrange(len(content))] = self._image()
        turns[position] = content

    def _content(self, image_probability: float) -> Content:
        images = self._random.randint(1, 3) if self._random.random() < image_probability else 0
        content = [self._text(), *(self._image() for _ in range(images))]
        self._random.shuffle(content)
        return content

    def _text(self) -> dict[str, Any]:
        return {"type": "text", "text": " ".join(self._random.choices(WORDS, k=self._random.randint(1, 25)))}

    def _image(self) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": self._random.choice(self._images)}}


class Daemons(NamedTuple):
    """Clients of a daemon with small caches, and of one without any."""

    caching: OpenAI
    fresh: OpenAI


@pytest.fixture(scope="module", params=FAMILIES)
def daemon_pair(request: pytest.FixtureRequest, module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemons]:
    homes = [module_home / request.param / name for name in ("caching", "fresh")]
    for home, configuration in zip(homes, (SMALL_CACHES, NO_CACHES), strict=True):
        tiny_vision_model(request.param, home / "models" / MODEL, tiny_tokenizer)
        (home / "config.toml").write_text(configuration)
    with (
        daemons.running(homes[0]) as caching,
        daemons.running(homes[1]) as fresh,
        OpenAI(base_url=f"{caching.url}/v1", api_key="x", max_retries=0) as caching_client,
        OpenAI(base_url=f"{fresh.url}/v1", api_key="x", max_retries=0) as fresh_client,
    ):
        yield Daemons(caching_client, fresh_client)


def answer(client: OpenAI, messages: Any) -> tuple[str | None, int]:
    reply = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=OUTPUT_TOKENS, temperature=0)
    assert reply.usage is not None
    return reply.choices[0].message.content, reply.usage.prompt_tokens


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 21))])
def test_answers_in_random_chats_equal_those_without_caches(daemon_pair: Daemons, seed: int) -> None:
    histories = Histories(seed)
    chats = [histories.next() for _ in range(CHATS)]

    with ThreadPoolExecutor(CONCURRENCY) as executor:
        cached = list(executor.map(lambda messages: answer(daemon_pair.caching, messages), chats))
    expected = [answer(daemon_pair.fresh, messages) for messages in chats]

    for number, messages in enumerate(chats):
        assert cached[number] == expected[number], (number, messages)
    assert len({text for text, _ in expected}) > CHATS / 4
