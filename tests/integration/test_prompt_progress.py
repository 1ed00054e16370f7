"""Progress of long prompts in streams, with a real worker and OpenAI's client."""

from pathlib import Path

from openai import OpenAI

from tests import daemons
from tests.models import make_tiny

# More tokens than a pass ever has.
MESSAGES = [{"role": "user", "content": "word " * 4500}]


def test_progress_of_a_long_prompt_is_streamed_on_request(home: Path, tiny_tokenizer: Path) -> None:
    make_tiny(home / "models" / "tiny", tiny_tokenizer, max_position_embeddings=8192)
    with daemons.running(home) as daemon, OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        request = {"model": "tiny", "messages": MESSAGES, "stream": True, "max_tokens": 1}
        chunks = list(client.chat.completions.create(**request, extra_body={"return_progress": True}))
        others = list(client.chat.completions.create(**request))

    progress = [chunk.model_extra["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk.model_extra]
    assert progress
    assert {"total", "cache", "processed"} == set(progress[0])
    assert progress == sorted(progress, key=lambda each: each["processed"])
    assert progress[-1]["processed"] < progress[-1]["total"]
    assert not [chunk for chunk in others if "prompt_progress" in chunk.model_extra]
