"""What images cost: a second question about an image, and text streams beside a request with an image."""

import base64
import io
import random
import statistics
from collections.abc import Mapping

import numpy as np
from PIL import Image

from tests.bench import measurements
from tests.bench.client import Response
from tests.bench.measurements import SHORT_OUTPUT_TOKENS, WARM_REQUESTS, Figures, Measurement, Target

EDGE = 1024
QUESTION_WORDS = 6


async def questions(target: Target) -> Figures:
    """Measure the first question about an image, and further ones."""
    file = make_image()
    first, *others = [(await ask(target, file)).ttft for _ in range(1 + WARM_REQUESTS)]
    second = statistics.median(others)
    return {"ttft first": first, "ttft second": second, "second/first": second / first}


async def stall(target: Target) -> Figures:
    """Measure how long two running streams pause while an image is processed."""
    return await measurements.pauses(target, lambda: ask(target, make_image()))


MEASUREMENTS: Mapping[str, Measurement] = {"image questions": questions, "image stall": stall}


async def ask(target: Target, file: str) -> Response:
    """Ask a question that the server has not seen before about an image."""
    question = target.prompts.question("")[-1]["content"]
    content = [{"type": "image_url", "image_url": {"url": file}}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return await target.server.request(messages, SHORT_OUTPUT_TOKENS)


def make_image() -> str:
    """Create an image that the server has not seen before, as a `data:` URL."""
    noise = np.random.default_rng(random.SystemRandom().getrandbits(64))
    blocks = Image.fromarray(noise.integers(0, 255, (32, 32, 3), np.uint8))
    file = io.BytesIO()
    blocks.resize((EDGE, EDGE), Image.Resampling.BICUBIC).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
