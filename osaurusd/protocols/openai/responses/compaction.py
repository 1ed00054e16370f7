"""Compaction: a summary by the model replaces the items of a conversation."""

import time
from typing import Literal

import msgspec

from osaurusd.errors import InternalError, InvalidRequest
from osaurusd.protocols.openai.responses.items import RESPONSE_PREFIX, encode_opaque, input_items, new_id
from osaurusd.protocols.openai.responses.types import Item, Response, ResponseRequest, Usage

_TASK = """\
Summarize the conversation so far for yourself: you will continue with this summary only. State the user's goals and \
constraints, what was done and decided, important facts such as names, paths and values, and what remains to be done. \
Write only the summary.\
"""


class Compaction(msgspec.Struct, frozen=True, kw_only=True):
    """The items that replace the conversation."""

    id: str
    object: Literal["response.compaction"] = "response.compaction"
    created_at: int
    output: list[Item]
    usage: Usage | None


def summary_request(body: ResponseRequest) -> ResponseRequest:
    """Return the request for the summary.

    Raises:
        InvalidRequest: there is no model or nothing to summarize.
    """
    if body.model is None:
        raise InvalidRequest("`model`: is required", param="model")
    if not body.input and body.previous_response_id is None:
        raise InvalidRequest("`input`: is required; send the conversation", param="input")
    task = {"role": "user", "content": _TASK}
    return ResponseRequest(
        model=body.model,
        input=[*input_items(body.input), task],
        instructions=body.instructions,
        previous_response_id=body.previous_response_id,
        reasoning=body.reasoning,
        truncation=body.truncation,
        max_output_tokens=body.max_output_tokens,
        temperature=body.temperature,
        store=False,
    )


def compaction(response: Response) -> Compaction:
    """Return the compaction that a response to the request for a summary makes.

    Raises:
        InternalError: the model wrote no summary.
    """
    messages = [item for item in response.output if item["type"] == "message"]
    text = "".join(part["text"] for message in messages for part in message["content"])
    if not text.strip():
        raise InternalError("the model wrote no summary; send the whole conversation instead, or use another model")
    item = {"id": new_id("cmp"), "type": "compaction", "encrypted_content": encode_opaque(text)}
    return Compaction(id=new_id(RESPONSE_PREFIX), created_at=int(time.time()), output=[item], usage=response.usage)
