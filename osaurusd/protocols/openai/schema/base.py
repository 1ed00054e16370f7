"""What chats and legacy completions have in common: OpenAI's published schema, and sampling fields beyond it.

How many there may be of what is configured (`openai.limits`); what is out of range in itself is here.
"""

from typing import Annotated

import msgspec

MAX_TOKEN_ID = 2**31 - 1

# More than any context holds; what is larger would not fit into the numbers of those who count.
MAX_TOKENS = 2**53

Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]
StopString = Annotated[str, msgspec.Meta(min_length=1)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Logprobs = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the bodies: which model, how to choose tokens, when to stop, how to reply. Null means left out.

    `top_k` 0 or -1 and `min_p` 0 cut nothing off. `logit_bias` has token ids as keys.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    stop: StopString | list[StopString] | None = None
    seed: Seed | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKEN_ID)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that has the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)
