"""Separating reasoning, tool calls and text by the markers that a model puts around them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlx_lm.generate import TextStateMachine

from osaurusd.worker.frontend import fallback_tools

# The names of mlx_lm's states.
TEXT = "normal"
REASONING = "reasoning"
CALL = "tool"


@dataclass(frozen=True)
class Markers:
    """The markers to look for in an output. The attribute names are those that mlx_lm's state machine reads."""

    has_thinking: bool
    think_start: str | None
    think_end: str | None
    structural_markers: tuple[str, ...] = ()
    response_transitions: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    has_tool_calling: bool = False
    tool_call_start: str = fallback_tools.CALL_START
    tool_call_end: str = fallback_tools.CALL_END

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, *, calls: bool, own_format: bool = False) -> "Markers":
        """Collect the markers of a model.

        Args:
            tokenizer: mlx_lm's tokenizer wrapper.
            calls: include the markers of tool calls.
            own_format: these are the model's own ones, which mlx_lm knows, instead of the fallback ones.
        """
        return cls(
            has_thinking=tokenizer.has_thinking,
            think_start=tokenizer.think_start,
            think_end=tokenizer.think_end,
            structural_markers=tuple(tokenizer.structural_markers),
            response_transitions=_transitions(tokenizer, calls=calls),
            has_tool_calling=calls,
            tool_call_start=tokenizer.tool_call_start if own_format else fallback_tools.CALL_START,
            tool_call_end=tokenizer.tool_call_end if own_format else fallback_tools.CALL_END,
        )

    def __bool__(self) -> bool:
        return bool(self.has_thinking or self.has_tool_calling or self.structural_markers or self.response_transitions)


def _transitions(tokenizer: Any, *, calls: bool) -> dict[str, list[tuple[str, str]]]:
    """Return the transitions between model-specific states. mlx_lm requires every reachable state to be a key."""
    own = {
        state: [(marker, after) for marker, after in edges if calls or after != CALL]
        for state, edges in tokenizer.response_transitions.items()
    }
    return {TEXT: [], REASONING: [], **own} if own else {}


class Segment(NamedTuple):
    """Text in one state, optionally followed by a marker that leads to the state `after`."""

    state: str
    text: str
    marker: str = ""
    after: str | None = None


class Splitter:
    """Splits the text of one output at its markers.

    Args:
        machine: recognizes the markers.
        initial: the state in which the output begins.
    """

    def __init__(self, machine: TextStateMachine, initial: str) -> None:
        self._state = machine.make_state(initial)
        self._held = ""

    @property
    def state(self) -> str:
        return str(self._state[0])

    def feed(self, text: str) -> Iterator[Segment]:
        """Add text. Text that may be the beginning of a marker is held back until that is certain."""
        state, segments = TextStateMachine.split(self._state, text)
        if len(segments) > 2 and len(text) > 1:
            # mlx_lm does not return the markers. With one marker at most, the marker is what the segments leave out.
            for character in text:
                yield from self.feed(character)
            return
        self._state = state
        text = self._held + text
        self._held = state[3]
        if len(segments) == 1:
            yield Segment(*segments[0])
            return
        (before, first), (after, second) = segments
        yield Segment(before, first, text[len(first) : len(text) - len(second) - len(self._held)], after)
        if second:
            yield Segment(after, second)

    def flush(self) -> Segment:
        """Return the text that was held back once no more text follows."""
        self._state, held, state = TextStateMachine.flush(self._state)
        self._held = ""
        return Segment(state, held)
