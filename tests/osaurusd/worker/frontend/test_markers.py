import pytest
from mlx_lm.generate import make_text_state_machine
from mlx_lm.tokenizer_utils import TokenizerWrapper

from osaurusd.worker.frontend.markers import Markers, Splitter, markers

MARKERS = Markers(
    has_thinking=True,
    think_start="<think>",
    think_end="</think>",
    structural_markers=("<sep>",),
    has_tool_calling=True,
)


def split(*pieces, marks=MARKERS, initial="normal"):
    """What is found in the text: what each state says, and the markers."""
    splitter = Splitter(make_text_state_machine(marks), initial)
    segments = [segment for piece in pieces for segment in splitter.feed(piece)]
    found = []
    for segment in [*segments, splitter.flush()]:
        if found and found[-1][0] == segment.state and not found[-1][2]:
            found[-1] = (segment.state, found[-1][1] + segment.text, segment.marker)
        else:
            found.append((segment.state, segment.text, segment.marker))
    return found


TEXT = "a<think>b</think>c<sep>d<tool_call>e</tool_call><tool_call></tool_call>f<th"
FOUND = [
    ("normal", "a", "<think>"),
    ("reasoning", "b", "</think>"),
    ("normal", "c", "<sep>"),
    ("normal", "d", "<tool_call>"),
    ("tool", "e", "</tool_call>"),
    ("normal", "", "<tool_call>"),
    ("tool", "", "</tool_call>"),
    ("normal", "f<th", ""),
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 30, 100])
def test_states_and_markers_are_found_however_the_text_is_cut(size):
    assert FOUND == split(*[TEXT[at : at + size] for at in range(0, len(TEXT), size)])


@pytest.mark.parametrize("calls", [True, False])
def test_a_model_may_have_states_of_its_own(tokenizer, calls):
    edges = {
        "header": [("to=me|", "reasoning"), ("to=you|", "normal"), ("call|", "tool")],
        "reasoning": [("|", "header")],
    }
    own = TokenizerWrapper(tokenizer._tokenizer, response_format={"transitions": edges})

    found = split("to=me|hm|x to=you|yes", marks=markers(own, calls=calls), initial="header")

    assert [
        ("header", "", "to=me|"),
        ("reasoning", "hm", "|"),
        ("header", "x ", "to=you|"),
        ("normal", "yes", ""),
    ] == found


def test_where_no_calls_are_wanted_their_markers_do_not_count(tokenizer):
    edges = {"header": [("to=you|", "normal"), ("call|", "tool")]}
    own = TokenizerWrapper(tokenizer._tokenizer, response_format={"transitions": edges})

    found = split("call|to=you|yes", marks=markers(own, calls=False), initial="header")

    assert [("header", "call|", "to=you|"), ("normal", "yes", "")] == found
