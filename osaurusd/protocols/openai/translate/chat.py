"""From a chat request to the worker's order: the only place where a field is renamed, defaulted or refused. Pure."""

from osaurusd.config import Defaults
from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import ChatPrompt, GenerationRequest, JsonObject, JsonSchema
from osaurusd.models.record import GenerationDefaults
from osaurusd.protocols.openai.schema.chat import HARMLESS, ChatRequest, NamedSchema, ResponseFormat
from osaurusd.protocols.openai.translate.messages import messages
from osaurusd.protocols.openai.translate.sampling import sampling, stop
from osaurusd.protocols.openai.translate.template import variables
from osaurusd.protocols.openai.translate.tools import tools


def order(request: ChatRequest, model: GenerationDefaults, defaults: Defaults) -> GenerationRequest:
    """The worker's order for a chat. The request wins over the model's own defaults, those over the config file's.

    Raises:
        InvalidRequest: a field cannot be used; UnsupportedParameter, ImageInputUnsupported: what is not done.
    """
    _refuse_unsupported(request)
    given = tools(request)
    form = _form(request.response_format)
    if form and given.required:
        raise InvalidRequest(
            "`response_format`: the answer cannot be of this format and the call that `tool_choice` requires",
            param="response_format",
        )
    return GenerationRequest(
        prompt=ChatPrompt(
            messages=messages(request.messages), tools=given.shown, template_variables=variables(request)
        ),
        sampling=sampling(request, model, defaults),
        n=request.n or 1,
        max_tokens=request.max_completion_tokens or request.max_tokens or defaults.max_tokens,
        stop=stop(request),
        logprobs=_logprobs(request),
        # An answer of a given format is no call, whatever it looks like.
        parse_tool_calls=bool(given.shown) and form is None,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        constraint=form or given.required,
    )


def _refuse_unsupported(request: ChatRequest) -> None:
    for name, harmless in HARMLESS.items():
        value = getattr(request, name)
        if value is not None and value not in harmless:
            raise UnsupportedParameter(f"`{name}` is not supported; leave it out", param=name)


def _logprobs(request: ChatRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise InvalidRequest("`top_logprobs`: needs `logprobs` to be true", param="top_logprobs")
    return None


def _form(form: ResponseFormat | None) -> JsonObject | JsonSchema | None:
    if form is None or form.type == "text":
        return None
    match form.type:
        case "json_object":
            return JsonObject()
        case "json_schema":
            return _schema(form.json_schema, "response_format.json_schema")
    path = "response_format.type"
    raise InvalidRequest(f"`{path}`: `text`, `json_object` or `json_schema`, not {form.type!r}", param=path)


def _schema(named: NamedSchema | None, path: str) -> JsonSchema:
    if named is None:
        raise InvalidRequest(f"`{path}`: is required", param=path)
    if named.schema is None:
        raise InvalidRequest(f"`{path}.schema`: is required", param=f"{path}.schema")
    return JsonSchema(schema=named.schema)
