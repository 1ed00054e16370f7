"""Markdown is rendered while it arrives."""

import io

import pyte
import pytest
from rich.console import Console

from osaurusctl.chat.markdown import MarkdownStream, split_blocks

WIDTH, HEIGHT = 40, 10

DOCUMENT = """\
# Title

Some **bold** text and a [link](http://example.com).

- one
- two

```python
def f(x):

    return x
```

| a | b |
| --- | --- |
| 1 | 2 |

1. first
2. second

The end"""

RENDERED = [
    "                 Title",
    "",
    "Some bold text and a link",
    "(http://example.com).",
    "",
    " • one",
    " • two",
    "",
    " def f(x):",
    "",
    "     return x",
    "",
    " a  b",
    " ────",
    " 1  2",
    "",
    " 1 first",
    " 2 second",
    "",
    "The end",
]


def show(pieces):
    """Return the lines of a terminal after the pieces have been printed, also those that have scrolled off."""
    output = io.StringIO()
    ticks = iter(range(10**6))
    stream = MarkdownStream(
        Console(file=output, force_terminal=True, width=WIDTH, height=HEIGHT), clock=lambda: float(next(ticks))
    )
    for piece in pieces:
        stream.add(piece)
    stream.close()
    screen = pyte.HistoryScreen(WIDTH, HEIGHT, history=1000)
    pyte.Stream(screen).feed(output.getvalue().replace("\n", "\r\n"))
    scrolled = ["".join(row[column].data for column in range(WIDTH)) for row in screen.history.top]
    return "\n".join(line.rstrip() for line in [*scrolled, *screen.display]).rstrip().split("\n")


@pytest.mark.parametrize("size", [1, 7, len(DOCUMENT)])
def test_result_does_not_depend_on_the_pieces(size):
    assert show([DOCUMENT[start : start + size] for start in range(0, len(DOCUMENT), size)]) == RENDERED


def test_every_line_of_a_block_higher_than_the_screen_appears_once():
    lines = [f"line {number}" for number in range(40)]

    shown = show(["```\n", *(f"{line}\n" for line in lines), "```\n"])

    assert [line.strip() for line in shown] == lines


def test_text_without_markup_is_unchanged():
    assert show(["Hello", " there"]) == ["Hello there"]


@pytest.mark.parametrize(
    "blocks",
    [
        ["one"],
        ["one\n\n"],
        ["one\n\n", "two"],
        ["one\ntwo\n"],
        ["- a\n- b\n\n- c"],
        ["```\na\n\nb\n"],
        ["```\na\n```\n", "b"],
        ["# a\n", "b\n\n", "- c"],
        ["a\u2028b\n\n", "c"],
        [""],
    ],
)
def test_text_is_split_into_blocks(blocks):
    assert split_blocks("".join(blocks)) == blocks
