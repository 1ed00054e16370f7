"""`POST /completions`, OpenAI's legacy endpoint, from the body of the request to the response."""

import contextlib
from collections.abc import Mapping, Sequence

from aiohttp import web

from osaurusd.conversion import convert
from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.http.json import json_response, read_json
from osaurusd.http.streaming import stream_sse
from osaurusd.inference import limits
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.request import GenerationRequest, Location, Prompt, TextPrompt, TokenPrompt
from osaurusd.inference.service import Service
from osaurusd.protocols.openai import rendering
from osaurusd.protocols.openai.common import (
    COMMON_PATHS,
    ResponseHead,
    sampling_params,
    stop_paths,
    stop_strings,
    token_biases,
    token_limit,
)
from osaurusd.protocols.openai.completion_types import CompletionRequest
from osaurusd.protocols.openai.errors import FieldPaths
from osaurusd.protocols.openai.output_format import output_paths, parse_output_format

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default. Unlike the answer to a chat, a continuation has no natural end."""

COMPLETION_PATHS: Mapping[Location, str] = {
    **COMMON_PATHS,
    ("logprobs",): "logprobs",
    limits.PROMPTS: "prompt",
    ("prompt",): "prompt",
    ("prompt", "suffix"): "suffix",
}
"""The fields of a `CompletionRequest` by their location in a generation request."""


class Completions:
    """Handles the endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: web.Request) -> web.StreamResponse:
        body = await read_json(request, CompletionRequest)
        paths = field_paths(body)
        with paths.named():
            record = await self._service.find(body.model)
            prompts = body.prompt if _has_many_prompts(body) else None
            self._service.check_lengths({limits.PROMPTS: prompts, limits.LOGIT_BIAS: body.logit_bias})
            generation_requests = await convert(build_requests, body, self._service.defaults(record))
            head = ResponseHead.create("cmpl", record.name)
            async with contextlib.aclosing(self._service.generate(record, generation_requests)) as events:
                if not body.stream:
                    return json_response(await rendering.collect_completion(head, events))
                chunks = rendering.stream_completion(head, events, include_usage=body.include_usage)
                return await stream_sse(request, chunks, error_event=paths.error_event, last_event=rendering.DONE)


def build_requests(body: CompletionRequest, defaults: RequestDefaults) -> list[GenerationRequest]:
    """Convert the body to one generation request per prompt.

    Raises:
        InvalidRequest: a field is invalid.
        UnsupportedParameter: the request uses an unsupported feature.
    """
    _check_combinations(body)
    sampling, stop = sampling_params(body, defaults, token_biases(body)), stop_strings(body)
    output_format = parse_output_format(body, defaults)
    return [
        GenerationRequest(
            prompt=prompt,
            sampling=sampling,
            n=body.choices,
            max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else token_limit(body.max_tokens),
            stop=stop,
            logprobs=body.logprobs,
            echo=bool(body.echo),
            parse_tool_calls=False,
            constraint=output_format.constraint,
        )
        for prompt in _parse_prompts(body)
    ]


def field_paths(body: CompletionRequest) -> FieldPaths:
    """Return the paths of the body's fields, with the number of the prompt if there is a list of prompts."""
    paths = {**stop_paths(body), **COMPLETION_PATHS, **output_paths(body)}
    if _has_many_prompts(body):
        paths["prompt",] = "prompt[{prompt}]"
    return FieldPaths(paths)


def _has_many_prompts(body: CompletionRequest) -> bool:
    """Whether `prompt` is a list of prompts. A list that starts with a number is one prompt of token ids."""
    return isinstance(body.prompt, list) and not (body.prompt and isinstance(body.prompt[0], int))


def _check_combinations(body: CompletionRequest) -> None:
    if body.best_of is not None and body.best_of != body.choices:
        raise UnsupportedParameter("`best_of` is not supported; omit it", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest("`max_tokens`: 0 is allowed only with `echo`", param="max_tokens")
    if body.suffix and body.echo:
        raise InvalidRequest("`suffix`: cannot be combined with `echo`", param="suffix")


def _parse_prompts(body: CompletionRequest) -> list[Prompt]:
    prompt = body.prompt
    if not isinstance(prompt, list):
        return [_text_prompt(prompt or "", body.suffix)]
    if not _has_many_prompts(body):
        return [_token_prompt(prompt, "prompt", body.suffix)]
    if not prompt:
        raise InvalidRequest(
            "`prompt`: must not be an empty list; omit it to start from an empty string", param="prompt"
        )
    return [_parse_prompt(item, f"prompt[{index}]", body.suffix) for index, item in enumerate(prompt)]


def _parse_prompt(prompt: str | int | list[int], path: str, suffix: str | None) -> Prompt:
    if isinstance(prompt, str):
        return _text_prompt(prompt, suffix)
    if isinstance(prompt, int):
        raise InvalidRequest(f"`{path}`: must be a string or a list of token ids", param=path)
    return _token_prompt(prompt, path, suffix)


def _text_prompt(text: str, suffix: str | None) -> TextPrompt:
    # With an empty suffix there is no gap to fill.
    return TextPrompt(text=text, suffix=suffix or None)


def _token_prompt(tokens: Sequence[str | int | list[int]], path: str, suffix: str | None) -> TokenPrompt:
    if suffix:
        raise InvalidRequest("`suffix`: requires `prompt` to be text, not token ids", param="suffix")
    if not tokens:
        raise InvalidRequest(f"`{path}`: must not be empty", param=path)
    ids = [token for token in tokens if isinstance(token, int)]
    if len(ids) < len(tokens):
        raise InvalidRequest(f"`{path}`: must contain only token ids", param=path)
    return TokenPrompt(tokens=ids)
