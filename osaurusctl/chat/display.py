"""Show an answer while it arrives: a spinner until its first token, reasoning dimmed, Markdown rendered."""

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from osaurusctl import progress
from osaurusctl.chat.stream import Answer, ChatChunk, ChatOptions, Message, Speed, Stopwatch, stream_chat
from osaurusctl.client import Client
from osaurusctl.output import Output

if TYPE_CHECKING:
    from osaurusctl.chat.markdown import MarkdownStream


class View(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are shown. Reasoning and rendered Markdown only appear on a terminal."""

    thinking: bool = True
    markdown: bool = True
    verbose: bool = False


def receive(
    client: Client, options: ChatOptions, messages: list[Message], answer: Answer, view: View, output: Output
) -> None:
    """Request an answer and show it. `answer` keeps what was received if this fails."""
    request = options.build_request(messages)
    if output.shows_progress:
        request["return_progress"] = True
    if options.response_format is not None:
        view = msgspec.structs.replace(view, markdown=False)
    stopwatch = Stopwatch()
    with contextlib.closing(stream_chat(client, request)) as chunks, _AnswerDisplay(output, view) as display:
        for chunk in chunks:
            answer.add(chunk)
            stopwatch.add(chunk)
            display.add(chunk)
    if view.verbose:
        answer.speed = stopwatch.measure(answer)


def show_notes(answer: Answer, output: Output) -> None:
    """Show whether a complete answer was truncated, and its speed if it was measured."""
    if answer.finish_reason == "length":
        output.note("the answer was truncated at the maximum number of tokens")
    if isinstance(answer.speed, Speed):
        output.note(_format_speed(answer, answer.speed))


def _format_speed(answer: Answer, speed: Speed) -> str:
    usage = answer.usage or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    parts = [
        f"prompt {usage.get('prompt_tokens', 0)} tokens" + (f" ({cached} cached)" if cached else ""),
        f"answer {usage.get('completion_tokens', 0)} tokens",
        *([] if speed.ttft_seconds is None else [f"TTFT {speed.ttft_seconds:.2f} s"]),
        *([] if speed.tokens_per_second is None else [f"{speed.tokens_per_second:.1f} tok/s"]),
    ]
    return ", ".join(parts)


class _AnswerDisplay:
    """Shows one answer. Nothing is shown in JSON mode."""

    def __init__(self, output: Output, view: View) -> None:
        self._output = output
        self._view = view
        self._spinner = contextlib.ExitStack()
        self._set_status: Callable[[str], None] = lambda _: None
        self._markdown: MarkdownStream | None = None
        self._thinking = False
        self._unfinished_line = False

    def __enter__(self) -> "_AnswerDisplay":
        self._set_status = self._spinner.enter_context(progress.spinner(self._output, "waiting"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._spinner.close()
        if self._markdown is not None:
            self._markdown.close()
        self._end_line()

    def add(self, chunk: ChatChunk) -> None:
        if self._output.json:
            return
        if chunk.prompt_progress is not None:
            done = chunk.prompt_progress.processed / max(chunk.prompt_progress.total, 1)
            self._set_status(f"prefill {done:.0%}")
        if chunk.reasoning:
            self._add_reasoning(chunk.reasoning)
        if chunk.text:
            self._add_text(chunk.text)

    def _add_reasoning(self, text: str) -> None:
        if not (self._view.thinking and self._output.on_terminal):
            self._set_status("thinking")
            return
        self._spinner.close()
        self._thinking = True
        self._write(text, dim=True)

    def _add_text(self, text: str) -> None:
        self._spinner.close()
        if self._thinking:
            self._thinking = False
            self._end_line()
            self._write("\n")
        if not (self._view.markdown and self._output.renders):
            self._write(text)
            return
        if self._markdown is None:
            self._markdown = _markdown_stream()
        self._markdown.add(self._output.printable(text))

    def _write(self, text: str, *, dim: bool = False) -> None:
        self._output.stream(text, dim=dim)
        self._unfinished_line = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._unfinished_line:
            self._write("\n")


def _markdown_stream() -> "MarkdownStream":
    # Importing rich takes longer than running `osaurusctl ls`, and piped answers do not need it.
    from osaurusctl.chat.markdown import MarkdownStream  # noqa: PLC0415

    return MarkdownStream()
