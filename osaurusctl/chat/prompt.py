"""Read prompts from a terminal, with editing and a history. Imports prompt_toolkit, so import this module only when it
is used.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output

from osaurusd.wire.files import read_file, replace_file

QUOTES = '"""'
"""Opens and closes a prompt of several lines."""

_HISTORY_LENGTH = 1000
_MAX_HISTORY_PROMPT = 10_000


class PromptReader:
    """Reads prompts. A bracketed paste is one prompt, even if it has several lines.

    Args:
        history: the file with earlier prompts.
        commands: slash commands to complete.
        source, screen: replace the terminal in tests.
    """

    def __init__(
        self, history: Path, commands: Sequence[str], *, source: Input | None = None, screen: Output | None = None
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            ">>> ",
            multiline=Condition(lambda: is_open(get_app().current_buffer.text)),
            prompt_continuation="... ",
            history=PromptHistory(history),
            completer=CommandCompleter(commands),
            complete_while_typing=False,
            key_bindings=_key_bindings(),
            input=source,
            output=screen or create_output(always_prefer_tty=True),
        )

    def read(self) -> str | None:
        """Return the next prompt, without quotes; None at the end of input, and empty after Ctrl-C."""
        try:
            # In the terminal's raw mode Ctrl-C is a key. A signal arrives before or after it: asyncio turns it into a
            # KeyboardInterrupt, but the handler of prompt_toolkit loses it if the prompt has just ended.
            return unquote(self._session.prompt(handle_sigint=False))
        except EOFError:
            return None
        except KeyboardInterrupt:
            return ""


class PromptHistory(History):
    """The last prompts, in a file that only its owner can read: one JSON string a line."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def load_history_strings(self) -> Iterable[str]:
        """Yield the prompts, the latest first."""
        lines = (self._read() or b"").splitlines()
        if len(lines) > 2 * _HISTORY_LENGTH:
            replace_file(self._file, b"\n".join([*lines[-_HISTORY_LENGTH:], b""]), 0o600)
        for line in reversed(lines[-_HISTORY_LENGTH:]):
            try:
                prompt = json.loads(line)
            except ValueError:
                continue
            if isinstance(prompt, str):
                yield prompt

    def store_string(self, string: str) -> None:
        if len(string) > _MAX_HISTORY_PROMPT:
            return
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError:
            return  # a full or read-only disk must not end the conversation
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(string) + "\n")

    def _read(self) -> bytes | None:
        try:
            return read_file(self._file)
        except OSError:
            return None


class CommandCompleter(Completer):
    """Completes slash commands at the start of a prompt."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002
        text = document.text_before_cursor
        if text.startswith("/"):
            for command in self._commands:
                if command.startswith(text):
                    yield Completion(command, start_position=-len(text))


def is_open(text: str) -> bool:
    """Whether `text` starts a prompt of several lines that is not complete yet."""
    stripped = text.strip()
    return stripped.startswith(QUOTES) and (len(stripped) < 2 * len(QUOTES) or not stripped.endswith(QUOTES))


def unquote(text: str) -> str:
    """Remove the quotes around a prompt of several lines."""
    stripped = text.strip()
    if stripped.startswith(QUOTES) and not is_open(stripped):
        return stripped[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
