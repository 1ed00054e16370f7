"""Neutral requests and events for tests."""

from osaurusd.inference.events import Completed, Delta, Finished, Logprob, TokenLogprob, Usage
from osaurusd.inference.request import ChatPrompt, GenerationRequest, Message, SamplingParams, TextPrompt

USAGE = Usage(prompt_tokens=20, completion_tokens=15, cached_tokens=8, reasoning_tokens=4)
COMPLETED = Completed(usage=USAGE)


def build_request(text="hello", **fields):
    """Build a request to continue `text`."""
    fields = {"prompt": TextPrompt(text=text), "sampling": SamplingParams(temperature=0), **fields}
    return GenerationRequest(**fields)


def build_chat_request(*messages, prompt=None, **fields):
    """Build a chat request; `prompt` has further fields of the prompt."""
    messages = list(messages) or [Message.from_text("user", "hello")]
    return build_request(prompt=ChatPrompt(messages=messages, **(prompt or {})), **fields)


def nested(depth):
    """Build objects nested to a depth."""
    value = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def delta(text="", index=0, **fields):
    return Delta(index=index, text=text, **fields)


def finished(reason="stop", index=0):
    return Finished(index=index, reason=reason)


def token(text, logprob=-0.5, *top):
    """Build a token with its alternatives, pairs of text and log-probability."""
    alternatives = [Logprob(text=other, bytes=[*other.encode()], logprob=value) for other, value in top]
    return TokenLogprob(text=text, bytes=[*text.encode()], logprob=logprob, top=alternatives)


async def stream(*events):
    """Yield events as a service does."""
    for event in events:
        yield event


async def collect(events):
    return [event async for event in events]
