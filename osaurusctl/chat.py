"""`osaurusctl run`: one question and its answer, or a conversation at the terminal."""

import contextlib
import sys
from typing import Any

import msgspec

from osaurusctl.client import Client
from osaurusctl.errors import BrokenReply, CliError, Exit, from_body
from osaurusctl.output import Output, is_terminal
from osaurusd.wire.errors import ErrorBody

Message = dict[str, str]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every question of a run carries."""

    model: str
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def request(self, messages: list[Message]) -> dict[str, Any]:
        """The body of a chat completion; what was not asked for is left to the daemon."""
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
    """An answer as far as it has come, and what `--json` prints of it."""

    model: str
    content: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    model: str | None = None
    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None
    error: ErrorBody | None = None


def default_model(client: Client, *, command: str = "run") -> str:
    """The model that serves where `command` names none.

    Raises:
        CliError: none is set; the message says where it would be.
    """
    status = client.status()
    if status.default_model is None:
        raise CliError(
            f"no model is named, and `default_model` is not set in {status.config_file}",
            hint=f"`osaurusctl {command} NAME` names one, and `osaurusctl ls` lists them",
            exit_code=Exit.USAGE,
            code="no_default_model",
        )
    return status.default_model


def prompt_text(argument: str | None) -> str | None:
    """The prompt: `argument`, what standard input holds, or both; None asks for a conversation."""
    if is_terminal(sys.stdin):
        return argument
    piped = sys.stdin.read().strip("\n") if sys.stdin is not None else ""
    return "\n\n".join(part for part in (argument, piped) if part)


def answer_once(client: Client, settings: Settings, prompt: str, output: Output) -> None:
    """Show the answer to one question as it comes, or as one JSON document."""
    answer = Answer(model=settings.model)
    try:
        _collect(client, settings.request([_message("user", prompt)]), answer, output)
    except CliError:
        _end_line(answer, output)
        raise
    _end_line(answer, output)
    if output.json:
        output.show(answer, "")
    _say_if_cut(answer, output)


def converse(client: Client, settings: Settings, output: Output) -> None:
    """Talk until Ctrl-D or `/bye`. The model is loaded first, so that what stands in the way is said at once."""
    _prepare_line_editing()
    client.load(settings.model)
    output.note(f"{settings.model}: `/clear` forgets what was said, `/bye` or Ctrl-D ends")
    history: list[Message] = []
    while (line := _read_line(output)) is not None:
        match line.strip():
            case "":
                continue
            case "/bye":
                return
            case "/clear":
                history.clear()
                output.note("forgotten")
            case text:
                _turn(client, settings, history, text, output)


def _turn(client: Client, settings: Settings, history: list[Message], text: str, output: Output) -> None:
    """One question and its answer. A failure ends a conversation only if there is nothing to lose yet."""
    answer = Answer(model=settings.model)
    question = _message("user", text)
    try:
        _collect(client, settings.request([*history, question]), answer, output)
    except KeyboardInterrupt:
        output.note("")
    except CliError as error:
        _end_line(answer, output)
        if not history:
            raise
        output.error(error.body, str(error), error.hint)
    else:
        _end_line(answer, output)
        _say_if_cut(answer, output)
    if answer.content:
        history += [question, _message("assistant", answer.content)]


def _collect(client: Client, request: dict[str, Any], answer: Answer, output: Output) -> None:
    """Add to `answer` what comes, so that the caller has it however this ends, and show it unless it is JSON."""
    with contextlib.closing(client.chat(request)) as objects:
        for data in objects:
            text = _add(answer, _chunk(data))
            if text and not output.json:
                output.stream(text)


def _chunk(data: bytes) -> _Chunk:
    try:
        chunk = msgspec.json.decode(data, type=_Chunk)
    except msgspec.DecodeError as error:
        raise BrokenReply(str(error)) from error
    if chunk.error:
        raise from_body(chunk.error)
    return chunk


def _add(answer: Answer, chunk: _Chunk) -> str:
    text = "".join(choice.delta.content or "" for choice in chunk.choices)
    answer.content += text
    answer.model = chunk.model or answer.model
    answer.usage = chunk.usage or answer.usage
    for choice in chunk.choices:
        answer.finish_reason = choice.finish_reason or answer.finish_reason
    return text


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _end_line(answer: Answer, output: Output) -> None:
    if answer.content and not answer.content.endswith("\n") and not output.json:
        output.stream("\n")


def _say_if_cut(answer: Answer, output: Output) -> None:
    if answer.finish_reason == "length":
        output.note("the answer was cut off: it reached the most tokens it may have")


def _prepare_line_editing() -> None:
    # Importing it is what gives input() its line editing; only conversations need that.
    import readline  # noqa: F401, PLC0415


def _read_line(output: Output) -> str | None:
    try:
        return input(">>> " if is_terminal(sys.stdout) else "")
    except EOFError:
        output.note("")
        return None
    except KeyboardInterrupt:
        output.note("")
        return ""
