"""From a legacy completion request to the worker's orders, one for each prompt. Pure."""

from collections.abc import Sequence

from osaurusd.config import Defaults
from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import GenerationRequest, Prompt, TextPrompt, TokenPrompt
from osaurusd.models.record import GenerationDefaults
from osaurusd.protocols.openai.schema.completions import CompletionRequest
from osaurusd.protocols.openai.translate.sampling import sampling, stop

DEFAULT_MAX_TOKENS = 16
"""OpenAI's; unlike chats, these answers have no end of their own."""


def orders(request: CompletionRequest, model: GenerationDefaults, defaults: Defaults) -> list[GenerationRequest]:
    """The worker's orders, in the order of the prompts. Sampling is defaulted as in chats.

    Raises:
        InvalidRequest: a field cannot be used; UnsupportedParameter: what is not done.
    """
    _check(request)
    chosen, ends = sampling(request, model, defaults), stop(request)
    return [
        GenerationRequest(
            prompt=prompt,
            sampling=chosen,
            n=request.n or 1,
            max_tokens=DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
            stop=ends,
            logprobs=request.logprobs,
            echo=bool(request.echo),
            parse_tool_calls=False,
        )
        for prompt in _prompts(request)
    ]


def _check(request: CompletionRequest) -> None:
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise UnsupportedParameter("`best_of` is not supported; leave it out", param="best_of")
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("`max_tokens`: 0 leaves nothing to answer without `echo`", param="max_tokens")
    if request.suffix and request.echo:
        raise InvalidRequest("`suffix`: cannot be used with `echo`", param="suffix")


def _prompts(request: CompletionRequest) -> list[Prompt]:
    """A list that begins with a number is one prompt, any other list is a prompt each; null is an empty text."""
    given = request.prompt
    if not isinstance(given, list):
        return [_text(given or "", request.suffix)]
    if given and isinstance(given[0], int):
        return [_tokens(given, "prompt", request.suffix)]
    if not given:
        raise InvalidRequest("`prompt`: is an empty list; leave it out to begin with nothing", param="prompt")
    return [_prompt(prompt, f"prompt[{at}]", request.suffix) for at, prompt in enumerate(given)]


def _prompt(prompt: str | int | list[int], path: str, suffix: str | None) -> Prompt:
    if isinstance(prompt, str):
        return _text(prompt, suffix)
    if isinstance(prompt, int):
        raise InvalidRequest(f"`{path}`: a text or a list of token ids, as the prompts before it", param=path)
    return _tokens(prompt, path, suffix)


def _text(text: str, suffix: str | None) -> TextPrompt:
    # Nothing to come after the gap is no gap.
    return TextPrompt(text=text, suffix=suffix or None)


def _tokens(tokens: Sequence[str | int | list[int]], path: str, suffix: str | None) -> TokenPrompt:
    if suffix:
        raise InvalidRequest("`suffix`: needs a text as `prompt`, not token ids", param="suffix")
    if not tokens:
        raise InvalidRequest(f"`{path}`: is empty", param=path)
    ids = [token for token in tokens if isinstance(token, int)]
    if len(ids) < len(tokens):
        raise InvalidRequest(f"`{path}`: a list of token ids has nothing else in it", param=path)
    return TokenPrompt(tokens=ids)
