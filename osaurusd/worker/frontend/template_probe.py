"""Determining what a chat template accepts, by rendering short chats of unique words and looking for the words."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from osaurusd.inference.request import ChatPrompt, Message, TextPart, Tool, ToolCall, ToolResultPart
from osaurusd.worker.frontend.history import TemplateInput, TemplateProfile, adapt

Render = Callable[[TemplateInput], str]
"""Renders a chat as text; raises any exception if the template rejects it."""

_WORD = re.compile(r"zq[a-z]+\d*")
# How a template that expects text prints an object or a content part that it receives instead.
_MISREAD = re.compile(r"""'zqkey'|["']type["']: ["'](text|thinking)["']""")
_REJECTED = 1000

_SHORT_IDS = ("zqid00001", "zqid00002")
_LONG_ID = f"call_{'0123456789ab' * 2}"

_TOOL = Tool(
    name="zqtool",
    description="zqdescription",
    parameters={
        "type": "object",
        "properties": {"zqparameter": {"type": "string", "description": "zqmeaning"}},
        "required": ["zqparameter"],
    },
)
_SYSTEM = Message.from_text("system", "zqsystem")
_USER = Message.from_text("user", "zquser")
_ANSWER = Message.from_text("assistant", "zqanswer")
_LATER_SYSTEM = Message.from_text("system", "zqlatersystem")
_LATER_USER = Message.from_text("user", "zqlateruser")
_LATER_ANSWER = Message.from_text("assistant", "zqlateranswer")


def _call(index: int = 0, *, arguments: str | None = None, call_id: str | None = None) -> ToolCall:
    text = f'{{"zqkey": "zqvalue{index}"}}' if arguments is None else arguments
    return ToolCall(id=call_id or _SHORT_IDS[index], name="zqtool", arguments=text)


def _calls(*calls: ToolCall, text: str = "", reasoning: str | None = None) -> Message:
    return Message.from_text("assistant", text, tool_calls=[*calls], reasoning=reasoning)


def _result(index: int = 0, *, call_id: str | None = None) -> Message:
    content: list[Any] = [TextPart(text=f"zqresult{index}")]
    return Message(role="tool", content=[ToolResultPart(call_id=call_id or _SHORT_IDS[index], content=content)])


def _chat(*messages: Message, tools: bool = False) -> ChatPrompt:
    return ChatPrompt(messages=[*messages], tools=[_TOOL] if tools else [])


class _Step(NamedTuple):
    """Chats that a template should render, and the changes of the profile to try where it does not."""

    chats: list[ChatPrompt]
    changes: list[dict[str, Any]]


_ALL_ROLES = frozenset({"system", "user", "assistant", "tool"})

_TEXT_STEPS = [
    _Step(
        [_chat(_USER), _chat(_SYSTEM, _USER), _chat(_USER, _ANSWER, _LATER_USER)],
        [
            {"empty_tools": True},
            {"tools": "functions"},
            {"part_lists": frozenset({"user"})},
            {"part_lists": frozenset({"user", "system"})},
            {"part_lists": frozenset({"system"})},
            {"part_lists": _ALL_ROLES},
            {"part_lists": _ALL_ROLES, "part_key": "content"},
        ],
    ),
    _Step([_chat(_USER, _ANSWER)], [{"ends_with_user": True}]),
    _Step(
        [
            _chat(_SYSTEM, _USER),
            _chat(_SYSTEM, _USER, _ANSWER),
            _chat(_SYSTEM, _LATER_SYSTEM, _USER),
            _chat(_USER, _ANSWER, _SYSTEM, _LATER_USER),
            _chat(_USER, _ANSWER, _LATER_USER, _SYSTEM),
        ],
        [{"system": "first"}, {"system": "user"}],
    ),
    _Step(
        [_chat(_USER, _LATER_USER), _chat(_ANSWER, _USER), _chat(_USER, _ANSWER, _LATER_ANSWER, _LATER_USER)],
        [{"alternates": True}],
    ),
    _Step(
        [_chat(_SYSTEM), _chat(_ANSWER), _chat(_SYSTEM, _ANSWER)], [{"needs_user": "anywhere"}, {"needs_user": "first"}]
    ),
    _Step(
        [_chat(_USER, Message(role="assistant"), _LATER_USER), _chat(Message(role="user"), _ANSWER, _LATER_USER)],
        [{"filler": " "}, {"filler": "-"}],
    ),
]

_TOOL_STEPS = [
    _Step(
        [_chat(_USER, tools=True), _chat(_SYSTEM, _USER, tools=True)],
        [{"tools": "message"}, {"tools": "message_json"}, {"tools": "xml_tools"}],
    ),
    _Step(
        [_chat(_SYSTEM, tools=True), _chat(_ANSWER, tools=True)], [{"needs_user": "anywhere"}, {"needs_user": "first"}]
    ),
    _Step(
        [ChatPrompt(messages=[_USER], tools=[Tool(name="zqtool"), Tool(name="zqother", parameters={})])],
        [{"empty_descriptions": True}],
    ),
]

_CALL_STEPS = [
    _Step(
        [
            _chat(_USER, _calls(_call()), _result(), _LATER_ANSWER, _LATER_USER),
            _chat(_USER, _calls(_call()), _result()),
        ],
        [
            {"arguments": "text"},
            {"calls": "flat"},
            {"calls": "flat", "arguments": "text"},
            {"part_lists": _ALL_ROLES},
            {"part_lists": _ALL_ROLES, "arguments": "text"},
        ],
    ),
    _Step(
        [_chat(_USER, _calls(_call(call_id=_LONG_ID)), _result(call_id=_LONG_ID), _LATER_ANSWER)], [{"short_ids": True}]
    ),
    _Step([_chat(_USER, _calls(_call(arguments="zqraw")), _result())], [{"any_arguments": False}]),
    _Step(
        [_chat(_USER, _calls(_call(0), _call(1)), _result(0), _result(1), _LATER_ANSWER)],
        [{"single_calls": True}],
    ),
    _Step(
        [
            _chat(_USER, _calls(_call(), text="zqtext"), _result(), _LATER_ANSWER, _LATER_USER),
            _chat(_USER, _calls(_call(), text="zqtext"), _result()),
        ],
        [{"separate_calls": True}],
    ),
    _Step(
        [_chat(_USER, _calls(_call(), reasoning="zqreasoning"), _result())],
        [{"reasoning": name} for name in ("thinking", "reasoning", "thought", "part")],
    ),
    _Step(
        [_chat(_USER, _calls(_call(), text="zqtext", reasoning="zqreasoning"), _result())], [{"separate_calls": True}]
    ),
    _Step(
        [
            _chat(_USER, _calls(_call()), _LATER_USER, _result()),
            _chat(_USER, _ANSWER, _result(), _LATER_USER),
            _chat(_result(), _LATER_USER),
            _chat(_USER, _calls(_call(0), _call(1)), _result(1), _LATER_USER),
            _chat(_USER, _calls(_call()), _LATER_ANSWER),
            _chat(_USER, _calls(_call())),
        ],
        [{"paired_results": True}],
    ),
    _Step(
        [
            _chat(_SYSTEM, _USER, _calls(_call()), _result()),
            _chat(_SYSTEM, _USER, _calls(_call()), _result(), _LATER_SYSTEM, _LATER_ANSWER),
        ],
        [{"system": "first"}, {"system": "user"}],
    ),
    _Step(
        [
            _chat(_calls(_call()), _result(), _LATER_USER, tools=True),
            _chat(_calls(_call()), _result(), tools=True),
            _chat(_SYSTEM, _calls(_call()), _result(), tools=True),
            _chat(_SYSTEM, _ANSWER, _LATER_USER, tools=True),
        ],
        [{"needs_user": "anywhere"}, {"needs_user": "first"}],
    ),
]


def find_profile(render: Render) -> TemplateProfile:
    """Determine what a template accepts. Renders a few dozen short chats."""
    profile = TemplateProfile()
    for step in _TEXT_STEPS:
        profile = _improve(render, profile, step)
    for step in _TOOL_STEPS:
        profile = _improve(render, profile, step)
    if _cost(render, profile, _TOOL_STEPS[0].chats):
        return replace(profile, tools="text", calls="text")
    for step in _CALL_STEPS:
        profile = _improve(render, profile, step)
    if _cost(render, profile, _CALL_STEPS[0].chats):
        return replace(profile, calls="text")
    return profile


def _improve(render: Render, profile: TemplateProfile, step: _Step) -> TemplateProfile:
    """Apply each change with which the template loses less of the chats, until it loses nothing."""
    cost = _cost(render, profile, step.chats)
    for change in step.changes:
        if not cost:
            break
        candidate = replace(profile, **change)
        if (candidate_cost := _cost(render, candidate, step.chats)) < cost:
            profile, cost = candidate, candidate_cost
    return profile


def _cost(render: Render, profile: TemplateProfile, chats: list[ChatPrompt]) -> int:
    return sum(_lost(render, profile, chat) for chat in chats)


def _lost(render: Render, profile: TemplateProfile, chat: ChatPrompt) -> int:
    """Return how many words of a chat the template loses."""
    try:
        text = render(adapt(chat, profile))
    except Exception:  # noqa: BLE001  a template is a program that can raise anything
        return _REJECTED
    return sum(word not in text for word in set(_words(chat))) + bool(_MISREAD.search(text))


def _words(chat: ChatPrompt) -> Iterator[str]:
    for message in chat.messages:
        yield from _WORD.findall(f"{message.text} {message.reasoning or ''}")
        for call in message.tool_calls:
            yield from _WORD.findall(f"{call.name} {call.arguments}")
    for tool in chat.tools:
        yield from _WORD.findall(f"{tool.name} {tool.description or ''} {tool.parameters or ''}")
