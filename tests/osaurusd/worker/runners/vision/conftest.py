"""Runners of tiny vision-language models, and what mlx_vlm itself generates."""

import functools
import io
from typing import Any, cast

import pytest

pytest.importorskip("PIL", reason="Pillow is not installed")

import numpy as np
from PIL import Image

from osaurusd.inference.request import ChatPrompt, GenerationRequest, ImagePart, Message, SamplingParams, TextPart
from osaurusd.rpc import messages
from osaurusd.worker.runners import load_runner
from tests.models import skip_without_mlx_vlm
from tests.osaurusd.worker.runners.vision.tiny_models import RECIPES, tiny_vision_model

skip_without_mlx_vlm()

SAMPLE = ("idefics3", "gemma3", "qwen3_vl")
"""Families with tiles, with a window in the language model, and with features in several layers."""

GREEDY = SamplingParams(temperature=0)
OUTPUT_TOKENS = 8
LOAD_OPTIONS = {"vision": True, "prefix_cache_bytes": 2**28, "feature_cache_bytes": 2**24, "context_length": 4096}


def draw(seed, width=40, height=30):
    """Return an image of random coarse blocks."""
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def ask(*contents, **options):
    """Build a chat; each message consists of texts and images, and the roles alternate."""
    return [
        ("user" if index % 2 == 0 else "assistant", content if isinstance(content, tuple) else (content,))
        for index, content in enumerate(contents)
    ], options


def encode(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def build_frame(id_, chat, **options):
    """Build the frame of a chat and its blobs."""
    turns, chat_options = chat
    blobs, chat_messages = [], []
    for role, content in turns:
        parts = []
        for part in content:
            if isinstance(part, str):
                parts.append(TextPart(text=part))
            else:
                parts.append(ImagePart(blob=len(blobs), media_type="image/png", **chat_options))
                blobs.append(encode(part))
        chat_messages.append(Message(role=role, content=parts))
    request = GenerationRequest(
        prompt=ChatPrompt(messages=chat_messages), sampling=GREEDY, max_tokens=OUTPUT_TOKENS, **options
    )
    return messages.Generate(id=id_, request=request), blobs


class Result:
    """The outcome of a request."""

    def __init__(self, request):
        self.request = request
        self.frames = []

    @property
    def tokens(self):
        return self.request.choices[0].output_tokens

    @property
    def cached_tokens(self):
        return self.request.cached_tokens

    @property
    def failure(self):
        return next((frame.message for frame in self.frames if isinstance(frame, messages.Failed)), None)


class TinyRunner:
    """A runner without threads."""

    def __init__(self, folder, **options):
        self.folder = folder
        self.runner = load_runner(messages.Load(path=str(folder), **(LOAD_OPTIONS | options)), lambda _: None)
        self.engine = cast(Any, self.runner.engine)
        self.network = self.engine._network

    def prepare(self, chat, id_=1, **options):
        return self.runner.prepare(*build_frame(id_, chat, **options))

    def run(self, *chats, **options):
        """Run chats at the same time; return their results."""
        results = {id_: Result(self.prepare(chat, id_, **options)) for id_, chat in enumerate(chats, 1)}
        for id_, result in results.items():
            result.frames += self.engine.add(result.request)
            assert result.request.id == id_
        while self.engine.busy:
            for frame in [*self.engine.decode(), *self.engine.prefill()]:
                if not isinstance(frame, messages.Stats):
                    results[frame.id].frames.append(frame)
        return list(results.values())

    def fresh(self, *chats, **options):
        """Run chats one after the other, each without what earlier ones have cached; return their tokens."""
        outputs = []
        for chat in chats:
            self.engine.drop_caches()
            outputs.append(self.run(chat, **options)[0].tokens)
        self.engine.drop_caches()
        return outputs


@pytest.fixture(scope="session")
def vision_folder(tiny_tokenizer, tmp_path_factory):
    """Returns the folder of a tiny model of a family, which is created once."""
    root = tmp_path_factory.mktemp("vision")
    return functools.cache(lambda family: tiny_vision_model(family, root / family, tiny_tokenizer))


@pytest.fixture(scope="session")
def get_runner(vision_folder):
    return functools.cache(lambda family: TinyRunner(vision_folder(family)))


@pytest.fixture(params=[name if name in SAMPLE else pytest.param(name, marks=pytest.mark.long) for name in RECIPES])
def family(request):
    """Every family. All but a sample are marked "long"."""
    return request.param


@pytest.fixture
def runner(family, get_runner):
    """A runner of each family, with empty caches."""
    runner = get_runner(family)
    runner.engine.drop_caches()
    return runner
