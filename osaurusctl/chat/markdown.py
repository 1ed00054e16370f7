"""Render Markdown on a terminal while it arrives. Imports rich, so import this module only when it is used."""

import itertools
import sys
import time
from collections.abc import Callable

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_REFRESH_SECONDS = 0.1

_parser = MarkdownIt().enable(["strikethrough", "table"])


class MarkdownStream:
    """Prints complete blocks, and shows the end of the unfinished last one, which later text may change.

    The text must not contain control characters other than newlines and tabs.
    """

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(file=sys.stdout)
        self._clock = clock
        self._refreshed_at = 0.0
        self._pending = ""
        self._printed = False
        self._live = Live(
            get_renderable=lambda: _Block(self._pending, spaced=self._printed, tail_only=True),
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def add(self, text: str) -> None:
        self._pending += text
        self._live.start()
        if "\n" in text:
            *complete, self._pending = split_blocks(self._pending)
            self._print(complete)
        if self._clock() - self._refreshed_at >= _REFRESH_SECONDS:
            self._live.refresh()
            self._refreshed_at = self._clock()

    def close(self) -> None:
        """Print the rest."""
        blocks, self._pending = split_blocks(self._pending), ""
        self._live.stop()
        self._print(blocks)

    def _print(self, blocks: list[str]) -> None:
        for block in blocks:
            if block.strip():
                self._console.print(_Block(block, spaced=self._printed))
                self._printed = True


def split_blocks(text: str) -> list[str]:
    """Split Markdown into its blocks, at least one. Further text can only change the last one."""
    starts = [token.map[0] for token in _parser.parse(text) if token.level == 0 and token.map]
    lines = text.split("\n")
    bounds = [0, *starts[1:], len(lines)]
    blocks = ["\n".join(lines[start:end]) for start, end in itertools.pairwise(bounds)]
    return [*(f"{block}\n" for block in blocks[:-1]), blocks[-1]]


class _Block:
    """Rendered Markdown without blank lines around it.

    Args:
        text: the Markdown.
        spaced: whether a blank line precedes it.
        tail_only: only render the last lines, as many as fit on the screen.
    """

    def __init__(self, text: str, *, spaced: bool, tail_only: bool = False) -> None:
        self._text = text
        self._spaced = spaced
        self._tail_only = tail_only

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Links show their targets: the text of a link that a model writes must not hide where it leads.
        markdown = Markdown(self._text, code_theme="ansi_dark", justify="default", hyperlinks=False)
        lines = _strip_blank(console.render_lines(markdown, options, pad=False))
        if self._spaced and lines:
            lines.insert(0, [])
        for line in lines[-max(console.height - 2, 1) :] if self._tail_only else lines:
            yield from line
            yield Segment.line()


def _strip_blank(lines: list[list[Segment]]) -> list[list[Segment]]:
    filled = [index for index, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
    return lines[filled[0] : filled[-1] + 1] if filled else []
