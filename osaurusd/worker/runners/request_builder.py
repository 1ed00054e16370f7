"""Building engine requests: everything that needs the tokenizer but no MLX arrays."""

import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import (
    ChatPrompt,
    GenerationRequest,
    JsonSchema,
    Location,
    Prompt,
    SamplingParams,
    TextPrompt,
    Tool,
)
from osaurusd.rpc import messages
from osaurusd.wire.errors import as_json
from osaurusd.worker.engine.images import PromptImage
from osaurusd.worker.engine.kv_cache import CacheLayout
from osaurusd.worker.engine.request import Choice, EngineRequest, Positions
from osaurusd.worker.engine.sampler import SamplingState
from osaurusd.worker.frontend import schema_repair
from osaurusd.worker.frontend.chat_template import EncodedPrompt
from osaurusd.worker.frontend.constraint import Constraint, ConstraintCompiler
from osaurusd.worker.frontend.format_prompt import describe_format
from osaurusd.worker.frontend.grammar import unusable_schema
from osaurusd.worker.frontend.logprobs import Score
from osaurusd.worker.frontend.output_parser import OutputParser
from osaurusd.worker.frontend.prompt_encoder import PromptEncoder
from osaurusd.worker.frontend.text_assembler import OutputDelta
from osaurusd.worker.runners.loading import Model
from osaurusd.worker.runners.scoring_builder import ScoringBuilder

# Maximum output tokens of a model that does not state its context length.
UNKNOWN_CONTEXT_LENGTH = 32768

_SEED_BITS = 64


class PreparedPrompt(NamedTuple):
    """An encoded prompt with its images; `positions` is that of an `EngineRequest`."""

    encoded: EncodedPrompt
    images: list[PromptImage] = []  # noqa: RUF012  a named tuple's default, which nothing changes
    positions: Positions | None = None


class RequestBuilder:
    """Builds engine requests for one model. Safe on any thread.

    Args:
        model: the loaded model.
        layout: the layout of its caches.
        vocabulary: the width of its logits.
    """

    def __init__(self, model: Model, layout: CacheLayout, vocabulary: int) -> None:
        self._tokenizer = model.tokenizer
        self._context_length = model.context_length
        self._vocabulary = vocabulary
        self._encoder = PromptEncoder(model.tokenizer, model.context_length, find_shared_prefix=layout.has_states)
        self._scoring = ScoringBuilder(model.tokenizer, self._encoder)
        self._parser = OutputParser(model.tokenizer)
        self._constraints = ConstraintCompiler(model.tokenizer, vocabulary, model.end_tokens)

    def build(self, frame: messages.Request, blobs: Sequence[bytes] = ()) -> EngineRequest:
        """Build the engine request for a frame with its blobs.

        Raises:
            OsaurusError: the request is invalid.
        """
        match frame:
            case messages.Generate():
                return self._build_generation(frame, blobs)
            case messages.Score():
                return self._scoring.build_scoring(frame)
            case messages.Rerank():
                return self._scoring.build_ranking(frame)
            case messages.Embed():
                raise InvalidRequest("the model generates text; it does not embed texts")

    def _build_generation(self, frame: messages.Generate, blobs: Sequence[bytes]) -> EngineRequest:
        request = _describe_format(_repair_schemas(frame.request))
        _check_logit_bias(request.sampling, self._vocabulary)
        prompt, images, positions = self._encode(request.prompt, blobs)
        constraint = self._compile_constraint(request, prompt)
        room = max((self._context_length or UNKNOWN_CONTEXT_LENGTH) - len(prompt.tokens), 1)
        return EngineRequest(
            id=frame.id,
            prompt_tokens=prompt.tokens,
            choices=[self._build_choice(request, prompt, constraint, index) for index in range(request.n)],
            images=images,
            positions=positions,
            max_tokens=room if request.max_tokens is None else min(request.max_tokens, room),
            bounded=request.max_tokens is not None and request.reserve_output,
            continuation=frame.continuation,
            shared_prefix_length=prompt.shared_prefix_length,
            echo=partial(self._echo, request, prompt) if request.echo else None,
            needs_prompt_logprobs=request.echo and request.logprobs is not None,
            report_progress=request.report_progress,
        )

    def _encode(self, prompt: Prompt, _: Sequence[bytes]) -> PreparedPrompt:
        """Encode the prompt. A language model accepts no images."""
        return PreparedPrompt(self._encoder.encode(prompt))

    def _compile_constraint(self, request: GenerationRequest, prompt: EncodedPrompt) -> Constraint | None:
        if request.constraint is None:
            return None
        tools = request.prompt.tools if isinstance(request.prompt, ChatPrompt) else []
        return self._constraints.compile(request.constraint, tools, starts_reasoning=prompt.starts_reasoning)

    def _build_choice(
        self, request: GenerationRequest, prompt: EncodedPrompt, constraint: Constraint | None, index: int
    ) -> Choice:
        sampling = SamplingState(
            request.sampling,
            prompt_tokens=[token for token in prompt.tokens if token >= 0],
            constraint=constraint.fork() if constraint and index else constraint,
            logprobs=request.logprobs,
            entropy=secrets.randbits(_SEED_BITS),
            index=index,
        )
        return Choice(index, sampling, self._parser.create_output(request, prompt))

    def _echo(self, request: GenerationRequest, prompt: EncodedPrompt, scores: list[Score]) -> OutputDelta:
        """Return the prompt as the beginning of an output."""
        text = request.prompt.text if isinstance(request.prompt, TextPrompt) else self._tokenizer.decode(prompt.tokens)
        wants_logprobs = request.logprobs is not None
        logprobs = self._parser.prompt_logprobs(prompt.tokens, [None, *scores]) if wants_logprobs else []
        return OutputDelta(text=text, logprobs=logprobs)


def _repair_schemas(request: GenerationRequest) -> GenerationRequest:
    """Repair the schema of the output, and those of the tools, which templates read."""
    if isinstance(request.constraint, JsonSchema):
        schema = _repair(request.constraint.schema, ("constraint", "schema"))
        constraint = msgspec.structs.replace(request.constraint, schema=schema)
        request = msgspec.structs.replace(request, constraint=constraint)
    if isinstance(request.prompt, ChatPrompt):
        tools = [_repair_tool(tool, index) for index, tool in enumerate(request.prompt.tools)]
        request = msgspec.structs.replace(request, prompt=msgspec.structs.replace(request.prompt, tools=tools))
    return request


def _repair_tool(tool: Tool, index: int) -> Tool:
    if tool.parameters is None:
        return tool
    parameters = _repair(tool.parameters, ("prompt", "tools", index), f" of {as_json(tool.name)}")
    return msgspec.structs.replace(tool, parameters=parameters)


def _repair(schema: dict[str, Any], location: Location, subject: str = "") -> dict[str, Any]:
    try:
        return schema_repair.repair(schema)
    except RecursionError as error:
        raise unusable_schema(str(error), location, subject) from error


def _describe_format(request: GenerationRequest) -> GenerationRequest:
    """Describe the format of the output in the messages of a chat."""
    if not isinstance(request.prompt, ChatPrompt):
        return request
    return msgspec.structs.replace(request, prompt=describe_format(request.prompt, request.constraint))


def _check_logit_bias(sampling: SamplingParams, vocabulary: int) -> None:
    for token, _ in sampling.logit_bias:
        if not 0 <= token < vocabulary:
            raise InvalidRequest(
                f"{token} is not a token id of this model; they range from 0 to {vocabulary - 1}",
                location=("sampling", "logit_bias"),
            )
