"""A chat has the same prompts and the same output in every protocol."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import pytest

from tests import daemons
from tests.daemons import Daemon
from tests.models import make_tiny
from tests.scripted_model import TEMPLATE, make_scripted, tool_call

SYSTEM = "Be brief."
QUESTION = "What is the weather in Paris?"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "The weather in a city.", "parameters": PARAMETERS}
CALL = tool_call("weather", city="Paris")
REPLIES = (CALL, "It is sunny in Paris.", "You are welcome!")
TURN = "messages | selectattr('role', 'equalto', 'assistant') | list | length"
"""The number of earlier answers, as an expression in Jinja."""

MAX_TOKENS = 60


class Turn(NamedTuple):
    """What the model answers to one request, and the lengths of prompt and output."""

    text: str
    arguments: dict[str, Any] | None
    prompt_tokens: int
    output_tokens: int


class Chat:
    """A conversation in one protocol. Subclasses send requests, and add to the history what they receive."""

    def __init__(self, url: str, model: str) -> None:
        self.model = model
        self._url = url
        self.history: list[dict[str, Any]] = []

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps({"model": self.model, "stream": False, **body}).encode()
        with urlopen(Request(f"{self._url}{path}", data, {"Content-Type": "application/json"})) as response:
            return json.load(response)

    def ask(self, text: str) -> Turn:
        self.history.append({"role": "user", "content": text})
        return self.send()

    def send(self) -> Turn:
        raise NotImplementedError

    def answer_call(self, result: str) -> Turn:
        """Send the result of the last call."""
        raise NotImplementedError


class ChatCompletions(Chat):
    def send(self) -> Turn:
        messages = [{"role": "system", "content": SYSTEM}, *self.history]
        tools = [{"type": "function", "function": WEATHER}]
        body = {"messages": messages, "tools": tools, "temperature": 0, "max_tokens": MAX_TOKENS}
        response = self.post("/v1/chat/completions", body)
        message, usage = response["choices"][0]["message"], response["usage"]
        self.history.append(message)
        calls = message.get("tool_calls")
        arguments = json.loads(calls[0]["function"]["arguments"]) if calls else None
        return Turn(message["content"] or "", arguments, usage["prompt_tokens"], usage["completion_tokens"])

    def answer_call(self, result: str) -> Turn:
        call_id = self.history[-1]["tool_calls"][0]["id"]
        self.history.append({"role": "tool", "tool_call_id": call_id, "content": result})
        return self.send()


class Responses(Chat):
    def __init__(self, url: str, model: str) -> None:
        super().__init__(url, model)
        self._previous: dict[str, Any] = {"id": None}

    def send(self) -> Turn:
        body = {
            "input": self.history,
            "instructions": SYSTEM,
            "previous_response_id": self._previous["id"],
            "tools": [{"type": "function", **WEATHER}],
            "temperature": 0,
            "max_output_tokens": MAX_TOKENS,
        }
        self._previous = response = self.post("/v1/responses", body)
        self.history = []
        texts = [part["text"] for item in response["output"] for part in item.get("content") or []]
        calls = [item for item in response["output"] if item["type"] == "function_call"]
        arguments = json.loads(calls[0]["arguments"]) if calls else None
        usage = response["usage"]
        return Turn("".join(texts), arguments, usage["input_tokens"], usage["output_tokens"])

    def answer_call(self, result: str) -> Turn:
        call_id = next(item["call_id"] for item in self._previous["output"] if item["type"] == "function_call")
        self.history.append({"type": "function_call_output", "call_id": call_id, "output": result})
        return self.send()


class Anthropic(Chat):
    def send(self) -> Turn:
        tool = {"name": WEATHER["name"], "description": WEATHER["description"], "input_schema": PARAMETERS}
        fields = {"messages": self.history, "system": SYSTEM, "tools": [tool]}
        response = self.post("/v1/messages", {**fields, "temperature": 0, "max_tokens": MAX_TOKENS})
        blocks, usage = response["content"], response["usage"]
        self.history.append({"role": "assistant", "content": blocks})
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        inputs = [block["input"] for block in blocks if block["type"] == "tool_use"]
        prompt_tokens = usage["input_tokens"] + usage["cache_read_input_tokens"]
        return Turn(text, inputs[0] if inputs else None, prompt_tokens, usage["output_tokens"])

    def answer_call(self, result: str) -> Turn:
        use = next(block for block in self.history[-1]["content"] if block["type"] == "tool_use")
        block = {"type": "tool_result", "tool_use_id": use["id"], "content": result}
        self.history.append({"role": "user", "content": [block]})
        return self.send()


class Ollama(Chat):
    def send(self) -> Turn:
        messages = [{"role": "system", "content": SYSTEM}, *self.history]
        tools = [{"type": "function", "function": WEATHER}]
        options = {"temperature": 0, "num_predict": MAX_TOKENS}
        response = self.post("/api/chat", {"messages": messages, "tools": tools, "options": options})
        message = response["message"]
        self.history.append(message)
        calls = message.get("tool_calls")
        arguments = calls[0]["function"]["arguments"] if calls else None
        return Turn(message["content"], arguments, response["prompt_eval_count"], response["eval_count"])

    def answer_call(self, result: str) -> Turn:
        self.history.append({"role": "tool", "tool_name": WEATHER["name"], "content": result})
        return self.send()


PROTOCOLS = (ChatCompletions, Responses, Anthropic, Ollama)


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    """A daemon with a model that calls a tool, and one whose output depends on every token of the prompt."""
    models = module_home / "models"
    make_scripted(models / "scripted", tiny_tokenizer, REPLIES, choose=TURN)
    make_tiny(models / "random", tiny_tokenizer, template=TEMPLATE.read_text(), tie_word_embeddings=False)
    with daemons.running(module_home) as running:
        yield running


def test_three_turns_with_a_tool_call_are_the_same(daemon: Daemon) -> None:
    conversations = []
    for protocol in PROTOCOLS:
        chat = protocol(daemon.url, "scripted")
        conversations.append([chat.ask(QUESTION), chat.answer_call("sunny"), chat.ask("Thank you.")])
    assert [("", {"city": "Paris"}), (REPLIES[1], None), (REPLIES[2], None)] == [turn[:2] for turn in conversations[0]]
    assert conversations[0] == conversations[1]
    assert conversations[0] == conversations[2]
    assert conversations[0] == conversations[3]


def test_history_with_a_tool_call_gives_the_same_output(daemon: Daemon) -> None:
    outputs = []
    for protocol in PROTOCOLS:
        chat = protocol(daemon.url, "scripted")
        chat.ask(QUESTION)
        # A random model continues the conversation: with another prompt, it would write something else.
        chat.model = "random"
        outputs.append((chat.answer_call("sunny"), chat.ask("Thank you.")))
    assert outputs[0][0].text
    assert [outputs[0]] * len(PROTOCOLS) == outputs


def test_answer_at_the_end_is_continued(daemon: Daemon) -> None:
    beginning, rest = "You ar", "e welcome!"  # the first token of the reply, and the others
    chat = Chat(daemon.url, "scripted")
    messages = [{"role": "user", "content": "Thank you."}, {"role": "assistant", "content": beginning}]
    completion = chat.post("/v1/chat/completions", {"messages": messages, "continue_final_message": True})
    message = chat.post("/v1/messages", {"messages": messages, "max_tokens": MAX_TOKENS})
    line = chat.post("/api/chat", {"messages": messages})
    count = chat.post("/v1/messages/count_tokens", {"messages": messages})["input_tokens"]

    assert completion["choices"][0]["message"]["content"] == rest
    assert [block["text"] for block in message["content"]] == [rest]
    assert line["message"]["content"] == rest
    prompt_tokens = message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"]
    assert [count] * 3 == [completion["usage"]["prompt_tokens"], prompt_tokens, line["prompt_eval_count"]]
