"""Random legal chats whose every text is a unique word, to test that chat templates render all of them."""

import random
import re
from collections.abc import Iterator

from osaurusd.inference.request import ChatPrompt, Message, TextPart, Tool, ToolCall, ToolResultPart

_WORD = re.compile(r"zq\d+x|zq[a-z]+")

TOOLS = [
    Tool(
        name="zqweather",
        description="zqdescription",
        parameters={
            "type": "object",
            "properties": {"zqcity": {"type": "string", "description": "zqmeaning"}},
            "required": ["zqcity"],
        },
    ),
    Tool(name="zqplain"),
    Tool(
        name="zqmixed",
        parameters={
            "type": "object",
            "properties": {
                "zqnullable": {"type": ["string", "null"]},
                "zqeither": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
                "zqconstant": {"enum": ["x", "y"]},
                "zqitems": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"zqnumber": {"type": "number"}}},
                },
                "zqany": {},
            },
        },
    ),
]


def words(chat: ChatPrompt) -> Iterator[str]:
    """Yield the words that a prompt must contain.

    Templates may omit earlier reasoning, and details of JSON schemas that they translate to another notation.
    """
    for message in chat.messages:
        yield from _WORD.findall(message.text)
        for call in message.tool_calls:
            yield from _WORD.findall(f"{call.name} {call.arguments}")
    for tool in chat.tools:
        properties = (tool.parameters or {}).get("properties", {})
        yield from _WORD.findall(f"{tool.name} {tool.description or ''} {' '.join(properties)}")


class HistoryGenerator:
    """Generates one chat.

    Args:
        seed: the same seed yields the same chat.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._words = 0
        self._messages: list[Message] = []
        self._unanswered: list[ToolCall] = []

    def chat(self) -> ChatPrompt:
        choose = self._random.random
        if choose() < 0.5:
            self._messages.append(Message(role="system", content=self._content()))
        for _ in range(self._random.choice([1, 1, 2, 3, 4, 6, 9])):
            if self._unanswered and choose() < 0.6:
                self._add_results()
            else:
                kinds = [self._add_user, self._add_answer, self._add_system, self._add_lost_result]
                self._random.choices(kinds, [8, 11, 2, 1])[0]()
        tools = self._random.sample(TOOLS, self._random.randrange(1, 4)) if choose() < 0.5 else []
        return ChatPrompt(messages=self._messages, tools=tools)

    def _add_user(self) -> None:
        name = self._random.choice([None, None, None, "bob"])
        self._messages.append(Message(role="user", content=self._content(), name=name))

    def _add_system(self) -> None:
        self._messages.append(Message(role="system", content=self._content()))

    def _add_answer(self) -> None:
        count = self._random.choice([0, 0, 0, 1, 1, 2, 3])
        self._unanswered = [self._call() for _ in range(count)]
        reasoning = self._random.choice([None, None, "reasoning", ""])
        self._messages.append(
            Message(role="assistant", content=self._content(), reasoning=reasoning, tool_calls=[*self._unanswered])
        )

    def _add_results(self) -> None:
        """Answer some calls, in any order, in one message or in several."""
        count = self._random.choice([1, len(self._unanswered)])
        answered, self._unanswered = self._unanswered[:count], self._unanswered[count:]
        self._random.shuffle(answered)
        results = [
            ToolResultPart(
                call_id=call.id,
                name=self._random.choice([None, call.name]),
                content=self._content(),
                is_error=self._random.random() < 0.1,
            )
            for call in answered
        ]
        groups = [[result] for result in results] if self._random.random() < 0.5 else [results]
        self._messages += [Message(role="tool", content=[*group]) for group in groups]

    def _add_lost_result(self) -> None:
        """Add the result of a call that the client has dropped from the history."""
        result = ToolResultPart(call_id="call_dropped", content=self._content())
        self._messages.append(Message(role="tool", content=[result]))

    def _call(self) -> ToolCall:
        ids = [
            f"call_{self._random.getrandbits(96):024x}",
            f"toolu_{self._random.getrandbits(40)}",
            f"{self._random.randrange(10**9):09}",
        ]
        return ToolCall(id=self._random.choice(ids), name=self._random.choice(TOOLS).name, arguments=self._arguments())

    def _arguments(self) -> str:
        complete = f'{{"zqkey": "{self._word()}", "zqlist": [1, {{"zqdeep": true}}]}}'
        others = [
            "{}",
            "",
            " \n",
            "null",
            "[]",
            '""',
            complete[:-4],
            complete[:18],
            self._word(),
            f'["{self._word()}"]',
        ]
        return complete if self._random.random() < 0.5 else self._random.choice(others)

    def _content(self) -> list[TextPart]:
        return [TextPart(text=self._text()) for _ in range(self._random.choice([0, 1, 1, 1, 2]))]

    def _text(self) -> str:
        return " ".join(self._word() for _ in range(self._random.choice([0, 1, 1, 2])))

    def _word(self) -> str:
        self._words += 1
        return f"zq{self._words}x"
