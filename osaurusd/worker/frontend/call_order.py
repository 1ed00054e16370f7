"""The order of tool calls and their results in a chat, as chat templates accept it."""

import itertools

import msgspec

from osaurusd.inference.request import Message, ToolCall, ToolResultPart
from osaurusd.worker.frontend import fallback_tools


def separate_calls(message: Message) -> list[Message]:
    """Move the text of a message with calls into a message before it."""
    if not message.tool_calls or not message.text:
        return [message]
    text = Message(role="assistant", content=message.content, name=message.name)
    return [text, msgspec.structs.replace(message, content=[])]


def split_calls(messages: list[Message]) -> list[Message]:
    """Split messages with several calls into messages with one call each, followed by its results."""
    split: list[Message] = []
    placed = False  # whether the results that follow were placed behind their calls
    for index, message in enumerate(messages):
        if len(message.tool_calls) > 1:
            unplaced, placed = _following_results(messages, index), True
            for number, call in enumerate(message.tool_calls):
                split.append(
                    msgspec.structs.replace(message, tool_calls=[call]) if number == 0 else _call_message(call)
                )
                own = [result for result in unplaced if result.call_id == call.id]
                unplaced = [result for result in unplaced if result.call_id != call.id]
                split += [_result_message(result) for result in own]
            split += [_result_message(result) for result in unplaced]
        elif message.role != "tool" or not placed:
            split.append(message)
            placed = False
    return split


def _following_results(messages: list[Message], index: int) -> list[ToolResultPart]:
    following = itertools.takewhile(lambda message: message.role == "tool", messages[index + 1 :])
    return [result for message in following for result in message.tool_results]


def _call_message(call: ToolCall) -> Message:
    return Message(role="assistant", tool_calls=[call])


def _result_message(*results: ToolResultPart) -> Message:
    return Message(role="tool", content=[*results])


def pair_results(messages: list[Message]) -> list[Message]:
    """Let results follow their calls, add empty results of unanswered calls, and turn other results into user text."""
    paired: list[Message] = []
    turn = _CallTurn()
    for message in messages:
        if message.role == "assistant":
            paired += turn.messages()
            turn = _CallTurn(message)
        elif message.role != "tool":
            turn.others.append(message)
        else:
            for result in message.tool_results:
                turn.add(result)
    return [*paired, *turn.messages()]


class _CallTurn:
    """An assistant message, the results of its calls, and the messages up to the next assistant message."""

    def __init__(self, message: Message | None = None) -> None:
        self._message = message
        self._results: list[ToolResultPart | None] = [None] * len(message.tool_calls if message else [])
        self.others: list[Message] = []

    def add(self, result: ToolResultPart) -> None:
        calls = self._message.tool_calls if self._message else []
        for index, call in enumerate(calls):
            if call.id == result.call_id and self._results[index] is None:
                self._results[index] = result
                return
        self.others.append(Message.from_text("user", fallback_tools.result_text(result)))

    def messages(self) -> list[Message]:
        if self._message is None:
            return self.others
        if not self._results:
            return [self._message, *self.others]
        results = [
            result or ToolResultPart(call_id=call.id, name=call.name, content=[])
            for call, result in zip(self._message.tool_calls, self._results, strict=True)
        ]
        return [self._message, _result_message(*results), *self.others]
