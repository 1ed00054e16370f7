import pytest
from mlx_lm.generate import make_text_state_machine
from mlx_lm.tokenizer_utils import TokenizerWrapper

from osaurusd.worker.frontend.markers import Markers, Splitter

MARKERS = Markers(
    has_thinking=True,
    think_start="<think>",
    think_end="</think>",
    structural_markers=("<sep>",),
    has_tool_calling=True,
)


def split(*chunks, marks=MARKERS, initial="normal"):
    """Return the segments of the text as (state, text, marker)."""
    splitter = Splitter(make_text_state_machine(marks), initial)
    segments = [segment for chunk in chunks for segment in splitter.feed(chunk)]
    merged = []
    for segment in [*segments, splitter.flush()]:
        if merged and merged[-1][0] == segment.state and not merged[-1][2]:
            merged[-1] = (segment.state, merged[-1][1] + segment.text, segment.marker)
        else:
            merged.append((segment.state, segment.text, segment.marker))
    return merged


TEXT = "a<think>b</think>c<sep>d<tool_call>e</tool_call><tool_call></tool_call>f<th"
SEGMENTS = [
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
def test_segments_do_not_depend_on_how_the_text_is_split(size):
    assert SEGMENTS == split(*[TEXT[at : at + size] for at in range(0, len(TEXT), size)])


@pytest.mark.parametrize("calls", [True, False])
def test_model_specific_states_are_recognized(tokenizer, calls):
    edges = {
        "header": [("to=me|", "reasoning"), ("to=you|", "normal"), ("call|", "tool")],
        "reasoning": [("|", "header")],
    }
    own = TokenizerWrapper(tokenizer._tokenizer, response_format={"transitions": edges})

    merged = split("to=me|hm|x to=you|yes", marks=Markers.from_tokenizer(own, calls=calls), initial="header")

    assert [
        ("header", "", "to=me|"),
        ("reasoning", "hm", "|"),
        ("header", "x ", "to=you|"),
        ("normal", "yes", ""),
    ] == merged


def test_call_markers_are_text_if_calls_are_not_parsed(tokenizer):
    edges = {"header": [("to=you|", "normal"), ("call|", "tool")]}
    own = TokenizerWrapper(tokenizer._tokenizer, response_format={"transitions": edges})

    merged = split("call|to=you|yes", marks=Markers.from_tokenizer(own, calls=False), initial="header")

    assert [("header", "call|", "to=you|"), ("normal", "yes", "")] == merged
