"""The models of the benchmark, and how many tokens to generate with them."""

from dataclasses import dataclass

STARTER = "smollm2-135m-instruct"
"""The starter model as `osaurusctl import` writes it, for the start-up figures."""

IMPORTED = "q4-0-250mb"
"""The GGUF file of the import figures."""


@dataclass(frozen=True)
class Model:
    """A model in the home directory. Token counts are chosen so that a measurement takes a second or two.

    Attributes:
        name: name of the folder and of the model in the API.
        title: title in the table.
        single_tokens: output tokens of a single stream.
        batch_tokens: output tokens of each of 8 or 16 streams.
        mixed_tokens: output tokens of each of 7 streams with different parameters.
        protocol_tokens: output tokens of each of 16 streams in one protocol.
    """

    name: str
    title: str
    single_tokens: int
    batch_tokens: int
    mixed_tokens: int
    protocol_tokens: int


SMOLLM = Model(
    "smollm2-f32", "SmolLM2-135M, float32", single_tokens=64, batch_tokens=32, mixed_tokens=48, protocol_tokens=16
)
TINY = Model(
    "tiny-llama", "tiny random Llama", single_tokens=512, batch_tokens=128, mixed_tokens=192, protocol_tokens=128
)
VISION = Model(
    "vision",
    "SmolLM2-135M with a random vision tower, float32",
    single_tokens=0,
    batch_tokens=0,
    mixed_tokens=0,
    protocol_tokens=0,
)
"""Its answers are arbitrary. An image of 1,024 pixels takes about 1,100 tokens."""

MODELS = {"smollm": SMOLLM, "tiny": TINY}
