"""Builds the output items of a response from the events of a generation, and the stream events on the way."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from osaurusd.inference.events import Delta, TokenLogprob, ToolCallDelta
from osaurusd.protocols.openai.logprobs import chat_logprobs
from osaurusd.protocols.openai.responses.items import encode_opaque, new_id
from osaurusd.protocols.openai.responses.tools import Binding, custom_input
from osaurusd.protocols.openai.responses.types import Item

StreamEvent = dict[str, Any]
"""An event without its `sequence_number`. It shares items with the output, so it must be encoded at once."""


class _OutputItem:
    """An item that is being generated. `item` is what clients see, complete once it is closed."""

    def __init__(self, output_index: int, item: Item) -> None:
        self.item = item
        self._output_index = output_index
        self._pieces: list[str] = []

    def open(self) -> Iterator[StreamEvent]:
        yield {"type": "response.output_item.added", "output_index": self._output_index, "item": self.item}

    def close(self, status: str) -> Iterator[StreamEvent]:
        self.item["status"] = status
        yield {"type": "response.output_item.done", "output_index": self._output_index, "item": self.item}

    def _event(self, type_: str, **fields: Any) -> StreamEvent:
        return {"type": f"response.{type_}", "item_id": self.item["id"], "output_index": self._output_index, **fields}


class _Message(_OutputItem):
    def __init__(self, output_index: int) -> None:
        message = {"id": new_id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        super().__init__(output_index, message)
        self._part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}

    def open(self) -> Iterator[StreamEvent]:
        yield from super().open()
        yield self._event("content_part.added", content_index=0, part=self._part)

    def append(self, text: str, logprobs: list[TokenLogprob]) -> StreamEvent:
        self._pieces.append(text)
        rendered = chat_logprobs(logprobs)
        tokens = [] if rendered is None else msgspec.to_builtins(rendered.content)
        if tokens:
            self._part["logprobs"] += tokens
        # A literal is faster than `_event`, and there is one of these per token.
        return {
            "type": "response.output_text.delta",
            "item_id": self.item["id"],
            "output_index": self._output_index,
            "content_index": 0,
            "delta": text,
            "logprobs": tokens,
        }

    def close(self, status: str) -> Iterator[StreamEvent]:
        text = self._part["text"] = "".join(self._pieces)
        yield self._event("output_text.done", content_index=0, text=text, logprobs=self._part["logprobs"])
        yield self._event("content_part.done", content_index=0, part=self._part)
        self.item["content"] = [self._part]
        yield from super().close(status)


class _Reasoning(_OutputItem):
    """Reasoning as `content`, or as `summary` if the client asked for one."""

    def __init__(self, output_index: int, *, summarize: bool, opaque: bool) -> None:
        item: Item = {"id": new_id("rs"), "type": "reasoning", "status": "in_progress", "summary": []}
        if not summarize:
            item["content"] = []
        super().__init__(output_index, item)
        self._opaque = opaque
        self._field, self._name, self._index = (
            ("summary", "reasoning_summary", "summary_index")
            if summarize
            else ("content", "reasoning", "content_index")
        )
        self._part = {"type": "summary_text" if summarize else "reasoning_text", "text": ""}

    def open(self) -> Iterator[StreamEvent]:
        yield from super().open()
        yield self._event(f"{self._part_name}.added", **{self._index: 0}, part=self._part)

    def append(self, text: str) -> StreamEvent:
        self._pieces.append(text)
        return self._event(f"{self._name}_text.delta", **{self._index: 0}, delta=text)

    def close(self, status: str) -> Iterator[StreamEvent]:
        text = self._part["text"] = "".join(self._pieces)
        yield self._event(f"{self._name}_text.done", **{self._index: 0}, text=text)
        yield self._event(f"{self._part_name}.done", **{self._index: 0}, part=self._part)
        self.item[self._field] = [self._part]
        if self._opaque:
            self.item["encrypted_content"] = encode_opaque(text)
        yield from super().close(status)

    @property
    def _part_name(self) -> str:
        return "reasoning_summary_part" if self._field == "summary" else "content_part"


class _Call(_OutputItem):
    """A call of a tool. Subclasses set what differs between kinds of tools."""

    id_prefix: str
    type: str
    arguments_field: str

    def __init__(self, output_index: int, call_id: str, binding: Binding) -> None:
        item: Item = {
            "id": new_id(self.id_prefix),
            "type": self.type,
            "status": "in_progress",
            "call_id": call_id,
            "name": binding.name,
            self.arguments_field: "",
        }
        if binding.namespace:
            item["namespace"] = binding.namespace
        super().__init__(output_index, item)

    def append(self, arguments: str) -> Iterator[StreamEvent]:
        self._pieces.append(arguments)
        yield from ()


class _FunctionCall(_Call):
    id_prefix = "fc"
    type = "function_call"
    arguments_field = "arguments"

    def append(self, arguments: str) -> Iterator[StreamEvent]:
        yield from super().append(arguments)
        if arguments:
            yield self._event("function_call_arguments.delta", delta=arguments)

    def close(self, status: str) -> Iterator[StreamEvent]:
        arguments = self.item["arguments"] = "".join(self._pieces)
        yield self._event("function_call_arguments.done", name=self.item["name"], arguments=arguments)
        yield from super().close(status)


class _CustomCall(_Call):
    """A call of a custom tool. Its input is known once the arguments are complete, so there is one delta."""

    id_prefix = "ctc"
    type = "custom_tool_call"
    arguments_field = "input"

    def close(self, status: str) -> Iterator[StreamEvent]:
        text = self.item["input"] = custom_input("".join(self._pieces))
        yield self._event("custom_tool_call_input.delta", delta=text)
        yield self._event("custom_tool_call_input.done", input=text)
        yield from super().close(status)


class OutputBuilder:
    """Builds the items of one response.

    Args:
        bindings: the tools of the request by the name that the model sees.
        summarize: the reasoning is the summary of its item.
        opaque_reasoning: reasoning items have `encrypted_content`.
        max_calls: further tool calls are dropped; None means no limit.
    """

    def __init__(
        self,
        bindings: Mapping[str, Binding],
        *,
        summarize: bool = False,
        opaque_reasoning: bool = False,
        max_calls: int | None = None,
    ) -> None:
        self.items: list[Item] = []
        self._bindings = bindings
        self._summarize = summarize
        self._opaque_reasoning = opaque_reasoning
        self._max_calls = max_calls
        self._open: _OutputItem | None = None

    def add(self, delta: Delta) -> Iterator[StreamEvent]:
        """Add new output, and yield its events."""
        if delta.reasoning:
            yield from self._add_reasoning(delta.reasoning)
        if delta.text or delta.logprobs:
            yield from self._add_text(delta.text, delta.logprobs)
        for piece in delta.tool_calls:
            if self._max_calls is None or piece.index < self._max_calls:
                yield from self._add_call(piece)

    def finish(self, *, complete: bool) -> Iterator[StreamEvent]:
        """Close the last item, and yield its events. A complete output has a message or a call."""
        if complete and (self._open is None or isinstance(self._open, _Reasoning)):
            yield from self._add_text("", [])
        yield from self._close("completed" if complete else "incomplete")

    def _add_reasoning(self, text: str) -> Iterator[StreamEvent]:
        if not isinstance(self._open, _Reasoning):
            item = _Reasoning(len(self.items), summarize=self._summarize, opaque=self._opaque_reasoning)
            yield from self._switch(item)
            yield item.append(text)
        else:
            yield self._open.append(text)

    def _add_text(self, text: str, logprobs: list[TokenLogprob]) -> Iterator[StreamEvent]:
        item = self._open
        if not isinstance(item, _Message):
            item = _Message(len(self.items))
            yield from self._switch(item)
        if text or logprobs:
            yield item.append(text, logprobs)

    def _add_call(self, piece: ToolCallDelta) -> Iterator[StreamEvent]:
        item = self._open
        if piece.id is not None and piece.name is not None:
            binding = self._bindings.get(piece.name, Binding(piece.name))
            kind = _CustomCall if binding.custom else _FunctionCall
            item = kind(len(self.items), piece.id, binding)
            yield from self._switch(item)
        if isinstance(item, _Call):
            yield from item.append(piece.arguments)

    def _switch(self, item: _OutputItem) -> Iterator[StreamEvent]:
        yield from self._close("completed")
        self._open = item
        self.items.append(item.item)
        yield from item.open()

    def _close(self, status: str) -> Iterator[StreamEvent]:
        if self._open is not None:
            yield from self._open.close(status)
            self._open = None
