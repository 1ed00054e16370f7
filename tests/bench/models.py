"""The models to measure with, and how long their answers are."""

from dataclasses import dataclass

STARTER = "smollm2-135m-instruct"
"""The starter model as `osaurusctl import` leaves it, for the figures of a start."""


@dataclass(frozen=True)
class Model:
    """A folder under the home's `models/`, and tokens to generate: enough for a second or two, and no more.

    Attributes:
        name: of the folder, and in the API.
        title: for the table.
        alone: tokens of an answer that is decoded alone.
        together: tokens of each of 8 or 16 answers that are decoded together.
        beside: tokens of each of 7 answers, of which some may be of another kind.
    """

    name: str
    title: str
    alone: int
    together: int
    beside: int


SMOLLM = Model("smollm2-f32", "SmolLM2-135M, float32", alone=64, together=32, beside=48)
TINY = Model("tiny-llama", "tiny random Llama", alone=512, together=128, beside=192)
MODELS = {"smollm": SMOLLM, "tiny": TINY}
