"""What a chat template gets besides messages and tools."""

from typing import Any

from osaurusd.errors import InvalidRequest
from osaurusd.protocols.openai.schema.chat import ChatRequest

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""What transformers' `apply_chat_template` takes for itself: the worker's to set, and no variables of a template."""


def variables(request: ChatRequest) -> dict[str, Any]:
    """The template's variables; what `chat_template_kwargs` says wins over what follows from `reasoning_effort`.

    Raises:
        InvalidRequest: the effort is none of OpenAI's, or a variable is not the client's to set.
    """
    own = request.chat_template_kwargs or {}
    for name in own:
        if name in RESERVED:
            path = f"chat_template_kwargs.{name}"
            raise InvalidRequest(f"`{path}`: is no variable of a template; leave it out", param=path)
    return {**_effort(request.reasoning_effort), **own}


def _effort(effort: str | None) -> dict[str, Any]:
    if effort is None:
        return {}
    if effort not in EFFORTS:
        allowed = ", ".join(f"`{name}`" for name in EFFORTS)
        raise InvalidRequest(f"`reasoning_effort`: one of {allowed}, not {effort!r}", param="reasoning_effort")
    # Templates know either a grade of effort or a switch.
    return {"reasoning_effort": effort} if effort != "none" else {"reasoning_effort": effort, "enable_thinking": False}
