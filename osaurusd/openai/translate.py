"""From a typed request to one `ipc.Generate`: the only place where a field is renamed, defaulted or refused. Pure."""

from osaurusd import ipc
from osaurusd.catalog.record import GenerationDefaults
from osaurusd.config import Defaults
from osaurusd.errors import ImageInputUnsupported, InvalidRequest, UnsupportedParameter
from osaurusd.openai.schema import HARMLESS, ChatRequest, Message, Part

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles that clients may use, and what chat templates call them."""

MAX_STOP_STRINGS = 16

# Sampling from an empty set is undefined; OpenAI takes 0 to mean the most likely token only.
SMALLEST_TOP_P = 1e-6


def chat(request: ChatRequest, model: GenerationDefaults, defaults: Defaults) -> ipc.Generate:
    """The worker's order for a chat. The request wins over the model's own defaults, those over the config file's.

    Raises:
        InvalidRequest: a message cannot be used; UnsupportedParameter, ImageInputUnsupported: what is not done.
    """
    _refuse_unsupported(request)
    top_p = _first(request.top_p, model.top_p, defaults.top_p)
    return ipc.Generate(
        id=0,
        messages=[_message(message, f"messages[{at}]") for at, message in enumerate(request.messages)],
        sampling=ipc.Sampling(
            temperature=_first(request.temperature, model.temperature, defaults.temperature),
            top_p=max(top_p, SMALLEST_TOP_P),
            seed=request.seed,
        ),
        max_tokens=request.max_completion_tokens or request.max_tokens or defaults.max_tokens,
        stop=_stop(request.stop),
    )


def _refuse_unsupported(request: ChatRequest) -> None:
    for name, harmless in HARMLESS.items():
        value = getattr(request, name)
        if value is not None and value not in harmless:
            raise UnsupportedParameter(f"`{name}` is not supported; leave it out", param=name)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _stop(stop: str | list[str] | None) -> list[str]:
    strings = [stop] if isinstance(stop, str) else stop or []
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"`stop`: at most {MAX_STOP_STRINGS} strings, not {len(strings)}", param="stop")
    return strings


def _message(message: Message, path: str) -> ipc.Message:
    role = ROLES.get(message.role)
    if role is None:
        allowed = ", ".join(f"`{name}`" for name in ROLES)
        raise InvalidRequest(f"`{path}.role`: one of {allowed}, not {message.role!r}", param=f"{path}.role")
    return ipc.Message(role=role, content=_content(message.content, f"{path}.content"))


def _content(content: str | list[Part] | None, path: str) -> str:
    if content is None:
        raise InvalidRequest(f"`{path}`: is required; a string or a list of text parts", param=path)
    if isinstance(content, str):
        return content
    return "".join(_part(part, f"{path}[{at}]") for at, part in enumerate(content))


def _part(part: Part, path: str) -> str:
    if part.type == "text":
        if part.text is None:
            raise InvalidRequest(f"`{path}.text`: is required in a text part", param=f"{path}.text")
        return part.text
    if part.type in ("image_url", "input_image", "image"):
        raise ImageInputUnsupported(f"`{path}`: image inputs are not supported; send text parts only", param=path)
    raise InvalidRequest(f"`{path}.type`: only `text` parts are supported, not {part.type!r}", param=f"{path}.type")
