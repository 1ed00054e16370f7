"""Chat with a model: one answer, or an interactive conversation."""

import contextlib
import sys
from collections.abc import Generator
from typing import Any

import msgspec

from osaurusctl.client import Client
from osaurusctl.errors import CliError, ExitCode, InvalidReply, error_from_body
from osaurusctl.output import Output, is_terminal
from osaurusd.wire.errors import ErrorBody

Message = dict[str, str]


class ChatOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The model and the sampling parameters of every request of a conversation."""

    model: str
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def build_request(self, messages: list[Message]) -> dict[str, Any]:
        """Build the body of a chat completion. Parameters that are not set are left to the daemon."""
        system = [_message("system", self.system)] if self.system else []
        sampling = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed}
        return {
            "model": self.model,
            "messages": system + messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in sampling.items() if value is not None},
        }


class Answer(msgspec.Struct):
    """The answer received so far. `run --json` prints it."""

    model: str
    content: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None

    def add(self, chunk: "ChatChunk") -> str:
        """Append a chunk, and return its text."""
        text = chunk.text
        self.content += text
        self.model = chunk.model or self.model
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
        return text


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    delta: Delta = Delta()
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    """The fields of a chat completion chunk that the CLI uses."""

    model: str | None = None
    choices: list[ChunkChoice] = []
    usage: dict[str, Any] | None = None
    error: ErrorBody | None = None

    @property
    def text(self) -> str:
        return "".join(choice.delta.content or "" for choice in self.choices)


def stream_chat(client: Client, request: dict[str, Any]) -> Generator[ChatChunk, None, None]:
    """Stream the chunks of a chat completion. Closing the generator cancels the request.

    Raises:
        CliError: the request failed, before or during the stream.
    """
    with contextlib.closing(client.chat(request)) as objects:
        for data in objects:
            try:
                chunk = msgspec.json.decode(data, type=ChatChunk)
            except msgspec.DecodeError as error:
                raise InvalidReply(str(error)) from error
            if chunk.error:
                raise error_from_body(chunk.error)
            yield chunk


def resolve_default_model(client: Client, *, command: str) -> str:
    """Return the daemon's default model.

    Raises:
        CliError: no default model is configured; the message names `command` and the key.
    """
    status = client.status()
    if status.default_model is None:
        raise CliError(
            f"no model given, and `default_model` is not set in {status.config_file}",
            hint=f'run "osaurusctl {command} NAME" with a model from "osaurusctl ls"',
            exit_code=ExitCode.USAGE,
            code="no_default_model",
        )
    return status.default_model


def read_prompt(argument: str | None) -> str | None:
    """Return the prompt: `argument`, standard input, or both; None for an interactive conversation."""
    if is_terminal(sys.stdin):
        return argument
    piped = sys.stdin.read().strip("\n") if sys.stdin is not None else ""
    return "\n\n".join(part for part in (argument, piped) if part)


def answer_prompt(client: Client, options: ChatOptions, prompt: str, output: Output) -> None:
    """Answer one prompt, as a stream of text or as one JSON document."""
    answer = Answer(model=options.model)
    try:
        _receive(client, options.build_request([_message("user", prompt)]), answer, output)
    finally:
        _end_line(answer, output)
    if output.json:
        output.show(answer, "")
    _warn_if_truncated(answer, output)


def chat(client: Client, options: ChatOptions, output: Output) -> None:
    """Run a conversation until Ctrl-D or `/bye`. The model is loaded first, so that load errors appear at once."""
    _enable_line_editing()
    client.load(options.model)
    output.note(f"{options.model}: /clear starts over, /bye or Ctrl-D quits")
    history: list[Message] = []
    while (line := _read_line(output)) is not None:
        match line.strip():
            case "":
                continue
            case "/bye":
                return
            case "/clear":
                history.clear()
                output.note("conversation cleared")
            case text:
                _answer_turn(client, options, history, text, output)


def _answer_turn(client: Client, options: ChatOptions, history: list[Message], text: str, output: Output) -> None:
    """Answer one message. A failure ends the conversation only if there is no history to lose."""
    answer = Answer(model=options.model)
    question = _message("user", text)
    try:
        _receive(client, options.build_request([*history, question]), answer, output)
    except KeyboardInterrupt:
        output.note("")
    except CliError as error:
        _end_line(answer, output)
        if not history:
            raise
        output.error(error.body, str(error), error.hint)
    else:
        _end_line(answer, output)
        _warn_if_truncated(answer, output)
    if answer.content:
        history += [question, _message("assistant", answer.content)]


def _receive(client: Client, request: dict[str, Any], answer: Answer, output: Output) -> None:
    """Add the stream to `answer`, which keeps what was received if this fails; print the text unless in JSON mode."""
    with contextlib.closing(stream_chat(client, request)) as chunks:
        for chunk in chunks:
            text = answer.add(chunk)
            if text and not output.json:
                output.stream(text)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _end_line(answer: Answer, output: Output) -> None:
    if answer.content and not answer.content.endswith("\n") and not output.json:
        output.stream("\n")


def _warn_if_truncated(answer: Answer, output: Output) -> None:
    if answer.finish_reason == "length":
        output.note("the answer was truncated at the maximum number of tokens")


def _enable_line_editing() -> None:
    # Importing readline gives input() line editing and history; only conversations need it.
    import readline  # noqa: F401, PLC0415


def _read_line(output: Output) -> str | None:
    """Read a line; empty after Ctrl-C, None at the end of input."""
    try:
        return input(">>> " if is_terminal(sys.stdout) else "")
    except EOFError:
        output.note("")
        return None
    except KeyboardInterrupt:
        output.note("")
        return ""
