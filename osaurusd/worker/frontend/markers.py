"""Telling thoughts, calls and text apart by the markers that a model puts around them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlx_lm.generate import TextStateMachine

from osaurusd.worker.frontend import tools

TEXT = "normal"
REASONING = "reasoning"
CALL = "tool"


@dataclass(frozen=True)
class Markers:
    """The markers that count in an answer, under the names by which mlx_lm's state machine asks for them."""

    has_thinking: bool
    think_start: str | None
    think_end: str | None
    structural_markers: tuple[str, ...] = ()
    response_transitions: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    has_tool_calling: bool = False
    tool_call_start: str = tools.OPEN
    tool_call_end: str = tools.CLOSE

    def __bool__(self) -> bool:
        return bool(self.has_thinking or self.has_tool_calling or self.structural_markers or self.response_transitions)


def markers(tokenizer: Any, *, calls: bool) -> Markers:
    """The markers of a model.

    Args:
        tokenizer: mlx_lm's wrapper.
        calls: whether calls are to be told apart; they come in the plain way if mlx_lm knows of none of the model's.
    """
    own = own_calls(tokenizer)
    return Markers(
        has_thinking=tokenizer.has_thinking,
        think_start=tokenizer.think_start,
        think_end=tokenizer.think_end,
        structural_markers=tuple(tokenizer.structural_markers),
        response_transitions=_transitions(tokenizer, calls=calls),
        has_tool_calling=calls,
        tool_call_start=tokenizer.tool_call_start if own else tools.OPEN,
        tool_call_end=tokenizer.tool_call_end if own else tools.CLOSE,
    )


def _transitions(tokenizer: Any, *, calls: bool) -> dict[str, list[tuple[str, str]]]:
    """Between the states that only this model has. The machine wants every state that can be reached to be a key."""
    own = {
        state: [(marker, after) for marker, after in edges if calls or after != CALL]
        for state, edges in tokenizer.response_transitions.items()
    }
    return {TEXT: [], REASONING: [], **own} if own else {}


def own_calls(tokenizer: Any) -> bool:
    """Whether the model calls tools in a format of its own that mlx_lm can read."""
    return bool(tokenizer.has_tool_calling and tools.takes_tools(tokenizer))


class Segment(NamedTuple):
    """Text in some state. A marker that leads to the state `after` may follow."""

    state: str
    text: str
    marker: str = ""
    after: str | None = None


class Splitter:
    """Splits the text of one answer at its markers.

    Args:
        machine: knows the markers.
        initial: the state that the answer begins in.
    """

    def __init__(self, machine: TextStateMachine, initial: str) -> None:
        self._state = machine.make_state(initial)
        self._held = ""

    @property
    def state(self) -> str:
        return str(self._state[0])

    def feed(self, text: str) -> Iterator[Segment]:
        """Take more text. Text that could be the beginning of a marker is held back until that is known."""
        state, segments = TextStateMachine.split(self._state, text)
        if len(segments) > 2 and len(text) > 1:
            # The machine does not say what the markers are; where there is one at most, it is what is left over.
            for character in text:
                yield from self.feed(character)
            return
        self._state = state
        text = self._held + text
        self._held = state[3]
        if len(segments) == 1:
            yield Segment(*segments[0])
            return
        (before, words), (after, more) = segments
        yield Segment(before, words, text[len(words) : len(text) - len(more) - len(self._held)], after)
        if more:
            yield Segment(after, more)

    def flush(self) -> Segment:
        """What was held back, once it is certain that nothing follows."""
        self._state, held, state = TextStateMachine.flush(self._state)
        self._held = ""
        return Segment(state, held)
