"""Frames between the daemon and its child processes: a closed union of messages each way, and their framing.

A frame is a 4-byte big-endian length followed by that many bytes of msgspec JSON. Both ends of the socketpair import
only this module, so a message that is not here does not exist. End of file is the death notice in both directions.
"""

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import Any, Generic, Literal, TypeVar

import msgspec

from osaurusd.wire.admin import FileState
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullStage

MAX_FRAME_BYTES = 256 * 1024 * 1024
_LENGTH = struct.Struct(">I")
_READ_BYTES = 256 * 1024

FinishReason = Literal["stop", "length", "tool_calls"]

T = TypeVar("T")


class FrameError(Exception):
    """The peer sent bytes that are no frame of this protocol; the connection is of no further use."""


class Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all messages."""


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what frames are made of."""


class ToolCall(Part, frozen=True):
    """A call that an earlier answer made; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Message(Part, frozen=True):
    """One chat turn, its content already reduced to text. `tool_call_id` is set on the answers of tools."""

    role: str
    content: str = ""
    name: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None


class Chat(Part, frozen=True, tag="chat"):
    """Messages for the chat template. `tools` are OpenAI's tool objects; `template` are further template variables."""

    messages: list[Message]
    tools: list[dict[str, Any]] = []
    template: dict[str, Any] = {}


class Text(Part, frozen=True, tag="text"):
    """Text to continue as it stands. With `suffix`: what is to be filled in stands between the two."""

    text: str
    suffix: str | None = None


class Tokens(Part, frozen=True, tag="tokens"):
    """Token ids to continue as they stand."""

    tokens: list[int]


Prompt = Chat | Text | Tokens


class JsonObject(Part, frozen=True, tag="json_object"):
    """The answer is to be one JSON object."""


class JsonSchema(Part, frozen=True, tag="json_schema"):
    """The answer is to be JSON that the schema accepts."""

    schema: dict[str, Any]


class Calls(Part, frozen=True, tag="calls"):
    """The answer is to be calls of the chat's tools with these names: one, or several if `parallel`."""

    names: list[str]
    parallel: bool = False


Constraint = JsonObject | JsonSchema | Calls


class Sampling(Part, frozen=True):
    """How to choose tokens; every default has been applied by the time this is made.

    `top_k` 0 and `min_p` 0 cut nothing off. `repetition_penalty` counts prompt and answer, the other two the answer.
    `logit_bias` holds pairs of token id and what is added to its logit.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: list[tuple[int, float]] = []
    seed: int | None = None


# Daemon to worker


class Load(Frame, frozen=True, tag="load"):
    """Load the model in the folder `path`. Limits are in bytes; None leaves MLX's own.

    `prefix_cache_bytes` bounds what is kept of earlier prompts, 0 keeps nothing. A request that finds `max_waiting`
    others waiting for their turn is refused. `stall_seconds` is how long running answers may stall while a prompt is
    processed, if that is longer than a few of their own steps.
    """

    path: str
    context_length: int | None = None
    dequantize: Literal["auto", "always", "never"] = "auto"
    memory_limit_bytes: int | None = None
    cache_limit_bytes: int | None = None
    wired_limit_bytes: int | None = None
    prefix_cache_bytes: int = 0
    max_waiting: int = 64
    stall_seconds: float = 0.2


class Limits(Frame, frozen=True, tag="limits"):
    """Use no more than this from now on; the fields mean what they mean in `Load`."""

    memory_limit_bytes: int | None = None
    cache_limit_bytes: int | None = None
    wired_limit_bytes: int | None = None
    prefix_cache_bytes: int = 0


class Generate(Frame, frozen=True, tag="generate"):
    """Continue `prompt`, `n` times.

    `max_tokens` None means: until the context is full; 0 is only of use with `echo`. `logprobs` is how many likeliest
    tokens to tell beside each chosen one, None for no log-probabilities at all. `echo` gives the prompt back first,
    scored if log-probabilities are asked for. `call_tools` False leaves calls that the model makes in the text, and
    without `parallel_calls` only the first one of an answer counts. One that is `part` of a client's request that has
    been begun is not refused for the length of the queue.
    """

    id: int
    prompt: Prompt
    sampling: Sampling
    n: int = 1
    max_tokens: int | None = None
    stop: list[str] = []
    logprobs: int | None = None
    echo: bool = False
    call_tools: bool = True
    parallel_calls: bool = True
    constraint: Constraint | None = None
    part: bool = False


class Cancel(Frame, frozen=True, tag="cancel"):
    """Drop request `id` at the next step; unknown or finished ids are ignored."""

    id: int


class Shutdown(Frame, frozen=True, tag="shutdown"):
    """Drop everything and exit 0."""


# Worker to daemon


class Hello(Frame, frozen=True, tag="hello"):
    """The first frame: the version of the package that the worker runs, and how long its imports took."""

    version: str
    import_seconds: float = 0.0


class Loaded(Frame, frozen=True, tag="loaded"):
    """The model is ready.

    `dtype` is what the weights are computed in. `memory_bytes` is what it takes now, `least_bytes` what it takes while
    it serves one request of ordinary length; 0 if that is not known. `working_set_bytes` is how much memory the GPU
    recommends to use at most, for all processes together; None where there is no GPU.
    """

    device: str
    dtype: str
    memory_bytes: int
    batched: bool
    least_bytes: int = 0
    working_set_bytes: int | None = None


class LoadFailed(Frame, frozen=True, tag="load_failed"):
    message: str


class Likelihood(Part, frozen=True):
    """A token as text and bytes, and how likely the model held it; None for the first token of a prompt."""

    text: str
    bytes: list[int]
    logprob: float | None = None


class ScoredToken(Likelihood, frozen=True):
    """A token of the prompt or answer beside the likeliest tokens at its place, likeliest first."""

    top: list[Likelihood] = []


class CallDelta(Part, frozen=True):
    """More of the tool call `index` of an answer: first its id and name, then its arguments, piece by piece."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Delta(Frame, frozen=True, tag="delta"):
    """What is new in answer `index` of request `id`.

    The first one of an answer may be empty and means: the prompt is processed.
    """

    id: int
    index: int = 0
    text: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = []
    tokens: list[ScoredToken] = []


class Finished(Frame, frozen=True, tag="finished"):
    """Answer `index` of request `id` is complete."""

    id: int
    reason: FinishReason
    index: int = 0


class Done(Frame, frozen=True, tag="done"):
    """Every answer of request `id` is complete.

    Counts are tokens, over all answers: `cached_tokens` of the prompt were not computed anew, `reasoning_tokens` of
    the completion are thoughts. The end token is not counted as a completion token.
    """

    id: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Failed(Frame, frozen=True, tag="failed"):
    """Request `id` failed; no further frame of it follows."""

    id: int
    code: ErrorCode
    message: str
    param: str | None = None


class Stats(Frame, frozen=True, tag="stats"):
    """Bytes that MLX holds for arrays and keeps in its own cache of freed buffers, and those of kept prompts.

    `reserved_bytes` is what weights and the requests under way may grow to.
    """

    active_bytes: int
    cache_bytes: int
    prefix_cache_bytes: int = 0
    reserved_bytes: int = 0


class Pulse(Frame, frozen=True, tag="pulse"):
    """The worker is getting on: sent about once a second while `progress` moves.

    `progress` only grows: by the bytes of weights that are loaded, by forward passes afterwards. `reserved_bytes` as in
    `Stats`.
    """

    progress: int
    reserved_bytes: int = 0


# Importer to daemon


class Progress(Frame, frozen=True, tag="progress"):
    """`done` of `total` bytes of a stage of an import."""

    stage: str
    done: int
    total: int


class Imported(Frame, frozen=True, tag="imported"):
    """The folder that was asked for is complete."""


class ImportFailure(Frame, frozen=True, tag="import_failure"):
    message: str


# Store process to daemon


class Deletion(Frame, frozen=True, tag="deletion"):
    """The bytes that a deletion freed, or that a planned one would free."""

    freed_bytes: int


class Hashing(Frame, frozen=True, tag="hashing"):
    """`done` of `total` bytes of a model hashed; `file` is the one being read."""

    file: str
    done: int
    total: int


class HashedFile(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    bytes: int
    state: FileState


class Hashed(Frame, frozen=True, tag="hashed"):
    """How every file of a model compares with what the store recorded."""

    files: list[HashedFile]


class StoreFailure(Frame, frozen=True, tag="store_failure"):
    message: str


# Hub process to daemon


class Pulling(Frame, frozen=True, tag="pulling"):
    """How far a download is; the fields mean what they mean in `wire.pulls.PullInfo`."""

    stage: PullStage
    done: int = 0
    total: int = 0
    hashed: int = 0
    to_hash: int = 0
    bytes_per_second: float = 0
    commit: str | None = None
    note: str | None = None


class Pulled(Frame, frozen=True, tag="pulled"):
    """The model is in the cache, whole. `bytes` is the size of its files."""

    commit: str
    bytes: int


class HubModel(Part, frozen=True):
    """A model that the hub knows. `bytes` is the size of its weights."""

    repo: str
    bytes: int | None = None
    parameters: int | None = None
    downloads: int | None = None
    gated: bool = False


class HubModels(Frame, frozen=True, tag="hub_models"):
    models: list[HubModel]


class HubFailure(Frame, frozen=True, tag="hub_failure"):
    code: ErrorCode
    message: str


ToWorker = Load | Limits | Generate | Cancel | Shutdown
FromWorker = Hello | Loaded | LoadFailed | Delta | Finished | Done | Failed | Stats | Pulse
FromImporter = Progress | Imported | ImportFailure
FromStore = Deletion | Hashing | Hashed | StoreFailure
FromHub = Pulling | Pulled | HubModels | HubFailure

TO_WORKER: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
FROM_WORKER: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
FROM_IMPORTER: msgspec.json.Decoder[FromImporter] = msgspec.json.Decoder(FromImporter)
FROM_STORE: msgspec.json.Decoder[FromStore] = msgspec.json.Decoder(FromStore)
FROM_HUB: msgspec.json.Decoder[FromHub] = msgspec.json.Decoder(FromHub)


def encode(frames: Iterable[Frame]) -> bytes:
    """All frames as one run of bytes, so that what one step produced travels in one write."""
    parts = bytearray()
    for frame in frames:
        body = msgspec.json.encode(frame)
        parts += _LENGTH.pack(len(body))
        parts += body
    return bytes(parts)


class FrameReader(Generic[T]):
    """Reads the frames of one direction's union from a stream.

    Args:
        stream: what the peer writes into.
        decoder: reads the union of frames that may come.
    """

    def __init__(self, stream: asyncio.StreamReader, decoder: msgspec.json.Decoder[T]) -> None:
        self._stream = stream
        self._decoder = decoder
        self._read = bytearray()

    async def read(self) -> T | None:
        """The next frame, or None once the peer has closed or died, even in the middle of a frame.

        Raises:
            FrameError: the bytes are no frame of this direction.
        """
        while (body := self._take()) is None:
            try:
                # As much as there is: what one step of a worker produced comes in one piece.
                more = await self._stream.read(_READ_BYTES)
            except ConnectionError:
                return None
            if not more:
                return None
            self._read += more
        try:
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"a frame could not be read: {error}") from error

    def _take(self) -> bytes | None:
        """The first frame's body, if all of it has been read."""
        if len(self._read) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._read)
        if length > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {length} bytes is announced; the limit is {MAX_FRAME_BYTES}")
        end = _LENGTH.size + length
        if len(self._read) < end:
            return None
        body = bytes(self._read[_LENGTH.size : end])
        del self._read[:end]
        return body


async def connect(fd: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over this end of a socketpair; takes the descriptor over."""
    return await asyncio.open_connection(sock=socket.socket(fileno=fd))
