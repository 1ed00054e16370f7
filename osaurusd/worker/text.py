"""From tokens to text: incremental detokenization and stop strings."""

from collections.abc import Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """What mlx_lm's streaming detokenizers offer."""

    @property
    def last_segment(self) -> str: ...

    def add_token(self, token: int) -> None: ...

    def finalize(self) -> None: ...


class StopMatcher:
    """Finds stop strings in text that arrives in pieces.

    Text that could be the beginning of a stop string is held back until it is known, so no part of one is emitted.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""
        self.matched = False

    def feed(self, text: str) -> str:
        """Take more text; return what may be emitted now. Sets `matched` once a stop string is complete."""
        if not self._stop:
            return text
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.matched = True
            self._held = ""
            return text[: min(found)]
        safe = len(text) - max(_overlap(text, stop) for stop in self._stop)
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """What was held back, once it is certain that nothing follows."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """The text of one sequence.

    Args:
        detokenizer: a fresh streaming detokenizer.
        stop: strings that end the text; they are never emitted.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._stop = StopMatcher(stop)

    @property
    def stopped(self) -> bool:
        return self._stop.matched

    def add(self, token: int) -> str:
        """Take one token; return the text that is certain by now, often empty."""
        self._detokenizer.add_token(token)
        return self._stop.feed(self._detokenizer.last_segment)

    def finish(self) -> str:
        """The rest of the text after the last token."""
        self._detokenizer.finalize()
        rest = self._stop.feed(self._detokenizer.last_segment)
        return rest if self._stop.matched else rest + self._stop.flush()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
