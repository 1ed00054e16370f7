"""What decisions cost: one and several questions about a long input, and a chat about the same input."""

from typing import Any

from tests.bench.client import start_request
from tests.bench.measurements import Figures, Target

INPUT_TOKENS = 1000
QUESTIONS = 20

_STATEMENT = "The text has the number {number}."


async def decisions(target: Target) -> Figures:
    """Measure the seconds of each kind of request. Every one has an input of its own, which no cache holds."""
    return {
        "chat": await _chat(target),
        "1 question": await _decide(target, 1),
        f"{QUESTIONS} questions": await _decide(target, QUESTIONS),
    }


async def _chat(target: Target) -> float:
    question = f"Statement: {_STATEMENT.format(number=0)}\nIs the statement true? Answer with Yes or No."
    content = f"{_input(target)}\n\n{question}"
    fields = {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0}
    return await _request(target, "/v1/chat/completions", fields)


async def _decide(target: Target, count: int) -> float:
    questions = [{"type": "predicate", "instructions": _STATEMENT.format(number=number)} for number in range(count)]
    return await _request(target, "/v1/decisions", {"input": _input(target), "questions": questions})


def _input(target: Target) -> str:
    return target.prompts.exactly(INPUT_TOKENS)[0]["content"]


async def _request(target: Target, path: str, fields: dict[str, Any]) -> float:
    body = {"model": target.server.model, **fields}
    stream = await start_request(target.server.host, target.server.port, path, body)
    await stream.wait_for_end()
    stream.events()  # raises an error of the server
    return stream.ended - stream.sent
