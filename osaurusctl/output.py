"""Where text goes: data to standard output, everything else to standard error; prose or JSON, coloured or not."""

import os
import sys
from typing import TextIO

import msgspec

# What a model answers, and what its files say, must not move the cursor or rename the window of the terminal.
_NO_CONTROLS = dict.fromkeys(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t")

_RED, _CYAN = "31", "36"


class Output:
    """What commands say goes through here. The streams are looked up on every use: tests and click replace them."""

    def __init__(self) -> None:
        self.json = False

    def show(self, value: object, human: str) -> None:
        """The result of a command: one JSON document, or `human` unless it is empty."""
        if self.json:
            self._document(value)
        elif human:
            _write(sys.stdout, _harmless(f"{human}\n", sys.stdout))

    def event(self, value: object) -> None:
        """One JSON document of several, a line each; people see progress by other means."""
        if self.json:
            self._document(value)

    def stream(self, text: str) -> None:
        """A piece of an answer, as it comes."""
        _write(sys.stdout, _harmless(text, sys.stdout))

    def note(self, text: str) -> None:
        """A remark for people."""
        if not self.json:
            _write(sys.stderr, _harmless(f"{text}\n", sys.stderr))

    def ask(self, question: str) -> bool:
        """Whether the person at the terminal says yes; nothing and the end of input mean no."""
        _write(sys.stderr, f"{question} [y/N] ")
        answer = sys.stdin.readline()
        if not answer:
            _write(sys.stderr, "\n")
        return answer.strip().lower() in ("y", "yes")

    def error(self, body: object, message: str, hint: str | None) -> None:
        """A failure: one line for people, further lines of the message indented, and the JSON document if asked for."""
        first, *more = _harmless(message, sys.stderr).splitlines() or [""]
        lines = [f"{_coloured('error:', _RED)} {first}", *(f"  {line}" for line in more)]
        if hint:
            lines.append(f"{_coloured('hint:', _CYAN)} {hint}")
        _write(sys.stderr, "\n".join(lines) + "\n")
        if self.json:
            self._document({"error": body})

    def _document(self, value: object) -> None:
        _write(sys.stdout, msgspec.json.encode(value).decode() + "\n")


def silence() -> None:
    """Send what is still buffered nowhere: the interpreter's last flush must not fail for want of a reader."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody sits at the other end. A stream that was closed before the start is None."""
    return stream is not None and stream.isatty()


def _write(stream: TextIO | None, text: str) -> None:
    if stream is not None:
        stream.write(text)
        stream.flush()


def _harmless(text: str, stream: TextIO | None) -> str:
    return text.translate(_NO_CONTROLS) if is_terminal(stream) else text


def _coloured(text: str, colour: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not is_terminal(sys.stderr)
    return text if plain else f"\x1b[1;{colour}m{text}\x1b[0m"
