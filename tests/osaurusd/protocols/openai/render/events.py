"""Events as workers send them, and what OpenAI's own types make of the objects rendered from them."""

import json

from osaurusd.inference.events import Completed, Delta, Finished, Logprob, TokenLogprob
from osaurusd.protocols.openai.render.envelope import Envelope

ENVELOPE = Envelope(id="reply-1", created=1738193123, model='m "x"')
COMMON = {"id": "reply-1", "created": 1738193123, "model": 'm "x"', "system_fingerprint": None}

DONE = Completed(id=1, prompt_tokens=20, completion_tokens=15, cached_tokens=8, reasoning_tokens=4)
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 15,
    "total_tokens": 35,
    "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 4,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def delta(text="", index=0, **fields):
    return Delta(id=1, index=index, text=text, **fields)


def finished(reason="stop", index=0):
    return Finished(id=1, index=index, reason=reason)


def scored(text, logprob=-0.5, *others):
    """A token with these others beside it, as pairs of text and log-probability."""
    top = [Logprob(text=other, bytes=[*other.encode()], logprob=at) for other, at in others]
    return TokenLogprob(text=text, bytes=[*text.encode()], logprob=logprob, top=top)


async def stream(*frames):
    for frame in frames:
        yield frame


async def chunks(render, kind, *frames, include_usage=False):
    """The chunks for these events as they are sent, each checked against OpenAI's type."""
    found = [chunk async for chunk in render(ENVELOPE, stream(*frames), include_usage=include_usage)]
    for chunk in found:
        kind.model_validate_json(chunk, strict=True)
        assert b"\n" not in chunk
    return [json.loads(chunk) for chunk in found]
