"""Output streams: results go to standard output, everything else to standard error; text or JSON."""

import os
import shutil
import sys
from typing import TextIO

import msgspec

# Model output and metadata must not move the cursor or set the terminal's title.
_CONTROL_CHARACTERS = dict.fromkeys(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t")

_RED, _CYAN = "31", "36"


class Output:
    """Where commands write. It looks the streams up on every call, because tests and click replace them."""

    def __init__(self) -> None:
        self.json = False

    @property
    def on_terminal(self) -> bool:
        """Whether results are text that a person reads on a terminal."""
        return not self.json and is_terminal(sys.stdout)

    @property
    def renders(self) -> bool:
        """Whether results may be formatted: they are read on a terminal that can move its cursor."""
        return self.on_terminal and os.environ.get("TERM") != "dumb"

    @property
    def shows_progress(self) -> bool:
        """Whether to show a spinner or a progress bar on standard error."""
        return not self.json and is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int | None:
        """The width of the terminal; None if standard output is not a terminal, so that scripts get every column."""
        return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None

    def show(self, value: object, text: str) -> None:
        """Print a result: `value` as one JSON document, or `text` unless it is empty."""
        if self.json:
            self._write_json(value)
        elif text:
            _write(sys.stdout, _sanitize(f"{text}\n", sys.stdout))

    def event(self, value: object) -> None:
        """Print one event as a line of JSON. In text mode a progress reporter shows it instead."""
        if self.json:
            self._write_json(value)

    def stream(self, text: str, *, dim: bool = False) -> None:
        """Print a piece of generated text, dimmed if the terminal can do that."""
        printable = _sanitize(text, sys.stdout)
        _write(sys.stdout, f"\x1b[2m{printable}\x1b[0m" if dim and self.renders else printable)

    def printable(self, text: str) -> str:
        """Return generated text without the characters that must not be written to a terminal."""
        return _sanitize(text, sys.stdout)

    def note(self, text: str) -> None:
        """Print a remark on standard error; nothing in JSON mode."""
        if not self.json:
            _write(sys.stderr, _sanitize(f"{text}\n", sys.stderr))

    def confirm(self, question: str, *, default: bool = False) -> bool:
        """Prompt the user; an empty answer means `default`, and the end of input means no."""
        _write(sys.stderr, _sanitize(f"{question} {'[Y/n]' if default else '[y/N]'} ", sys.stderr))
        answer = sys.stdin.readline()
        if not answer:
            _write(sys.stderr, "\n")
            return False
        word = answer.strip().lower()
        return word in ("y", "yes") or (default and not word)

    def choose(self, question: str, count: int) -> int | None:
        """Prompt for a number from 1 to `count`; an empty answer is 1, anything else or the end of input is None."""
        _write(sys.stderr, f"{question} [1] ")
        answer = sys.stdin.readline()
        if not answer:
            _write(sys.stderr, "\n")
            return None
        text = answer.strip() or "1"
        return int(text) if text.isdecimal() and 1 <= int(text) <= count else None

    def error(self, body: object, message: str, hint: str | None) -> None:
        """Print a failure on standard error, further lines indented; in JSON mode also as a JSON document."""
        first, *rest = _sanitize(message, sys.stderr).splitlines() or [""]
        lines = [f"{_colored('error:', _RED)} {first}", *(f"  {line}" for line in rest)]
        if hint:
            lines.append(f"{_colored('hint:', _CYAN)} {hint}")
        _write(sys.stderr, "\n".join(lines) + "\n")
        if self.json:
            self._write_json({"error": body})

    def _write_json(self, value: object) -> None:
        _write(sys.stdout, msgspec.json.encode(value).decode() + "\n")


class Notes(Output):
    """Writes results as remarks, for work that precedes the actual result."""

    def show(self, value: object, text: str) -> None:  # noqa: ARG002 - remarks are text
        if text:
            self.note(text)


def discard_output() -> None:
    """Point standard output at /dev/null, so that the final flush does not fail after the reader closed the pipe."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether `stream` is a terminal. A standard stream that was closed before startup is None."""
    return stream is not None and stream.isatty()


def _write(stream: TextIO | None, text: str) -> None:
    if stream is not None:
        stream.write(text)
        stream.flush()


def _sanitize(text: str, stream: TextIO | None) -> str:
    return text.translate(_CONTROL_CHARACTERS) if is_terminal(stream) else text


def _colored(text: str, color: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not is_terminal(sys.stderr)
    return text if plain else f"\x1b[1;{color}m{text}\x1b[0m"
