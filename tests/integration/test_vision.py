"""Images in chats, with a real daemon and worker. The weights are random: these tests are about what is shared."""

import base64
import concurrent.futures
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion
from PIL import Image

from tests import daemons
from tests.daemons import Daemon
from tests.models import skip_without_mlx_vlm
from tests.osaurusd.worker.runners.vision.tiny_models import tiny_vision_model

skip_without_mlx_vlm()

MODEL = "tiny-vision"
QUESTION = "Describe the drawing in a few words, and name its largest block. " * 3
TOKENS = 8


def draw(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def image_part(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    tiny_vision_model("smolvlm", module_home / "models" / MODEL, tiny_tokenizer)
    with daemons.running(module_home) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def openai(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=daemon.url, api_key="not-needed", max_retries=0) as client:
        yield client


@pytest.fixture
def ask(openai: OpenAI) -> Any:
    def ask(*content: str | Image.Image) -> ChatCompletion:
        parts: list[Any] = []
        for part in content:
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
            else:
                parts.append(image_part(part))
        return openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": parts}], temperature=0, max_tokens=TOKENS
        )

    return ask


def text_of(completion: ChatCompletion) -> str | None:
    return completion.choices[0].message.content


def test_second_question_about_an_image_reuses_it(ask: Any) -> None:
    first = ask(QUESTION, draw(3, 64, 64), "What is it?")
    second = ask(QUESTION, draw(3, 64, 64), "Where is it?")
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens / 2


def test_simultaneous_requests_with_other_images_do_not_affect_each_other(ask: Any) -> None:
    contents = [
        (draw(10), QUESTION),
        (draw(11, 100, 50), draw(12, 9, 7), QUESTION),
        (QUESTION,),
        (QUESTION, draw(13, 64, 64)),
        (draw(14), draw(15), draw(16), QUESTION),
    ]
    with concurrent.futures.ThreadPoolExecutor() as executor:
        together = [text_of(completion) for completion in executor.map(lambda content: ask(*content), contents)]
    assert together == [text_of(ask(*content)) for content in contents]
