"""Stop strings in text that arrives in pieces."""

from collections.abc import Sequence


class StopMatcher:
    """Finds stop strings in text that arrives in pieces.

    Text that could be the beginning of a stop string is held back until it is known, so no part of one is emitted. Of
    several stop strings the one that begins first wins, however the text is cut.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""
        self.matched = False
        self.matched_stop: str | None = None

    def feed(self, text: str) -> str:
        """Take more text; return what may be emitted now. Sets `matched` once a stop string is complete."""
        if not self._stop:
            return text
        text = self._held + text
        found = _first(text, self._stop)
        # From here on a stop string may have begun, perhaps around the one that was found.
        open_from = len(text) - max(_overlap(text, stop) for stop in self._stop)
        if found is not None and found <= open_from:
            return self._end(text, found)
        self._held = text[open_from:]
        return text[:open_from]

    def flush(self) -> str:
        """What was held back, once it is certain that nothing follows; sets `matched` if a stop string is in it."""
        held, self._held = self._held, ""
        found = _first(held, self._stop)
        return held if found is None else self._end(held, found)

    def _end(self, text: str, at: int) -> str:
        self.matched = True
        self.matched_stop = next(stop for stop in self._stop if text.startswith(stop, at))
        self._held = ""
        return text[:at]


def _first(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string in `text` begins."""
    return min((at for at in map(text.find, stops) if at >= 0), default=None)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    at = max(len(text) - len(stop) + 1, 0)
    while (at := text.find(stop[0], at)) >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at += 1
    return 0
