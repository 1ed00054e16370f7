"""Rendering chats with the model's chat template, or as plain `role: text` lines for a model without one."""

import inspect
import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec
from transformers import PreTrainedTokenizerBase

from osaurusd.errors import ContextLengthExceeded, InvalidRequest
from osaurusd.inference.request import ChatPrompt, Location, TextPart
from osaurusd.wire.errors import as_json
from osaurusd.worker.frontend import context_length, fallback_tools
from osaurusd.worker.frontend.chat_images import ImageTexts
from osaurusd.worker.frontend.history import PLAIN_TEXT, TemplateInput, TemplateProfile, adapt
from osaurusd.worker.frontend.template_probe import find_profile

FALLBACK_STOP = "\nuser:"

# Keyword arguments that transformers interprets itself. A client's `chat_template` among them would be executed.
_RESERVED_VARIABLES = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"} - {
    "documents"
}
# If the prompt ends with the marker that starts reasoning, the marker is within this many tokens of the end.
_TAIL_TOKENS = 16
# What precedes the text of an answer if the template leaves its channel to the model, as that of gpt-oss does.
_OPEN_HEADER = "<|start|>assistant"
_FINAL_CHANNEL = "<|channel|>final<|message|>"
_EXTRA_TOKENS = "additional_special_tokens"
# transformers' name of the template for chats with tools.
_TOOL_TEMPLATE = "tool_use"
# Marks where an answer is to be continued: templates add text after it, and some remove trailing spaces.
_END_OF_ANSWER = "zqendofanswer"

_MESSAGES: Location = ("prompt", "messages")

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class EncodedPrompt:
    """Prompt tokens, and properties of the prompt that the output depends on.

    Attributes:
        tokens: token ids.
        stop: stop strings in addition to those of the request.
        shared_prefix_length: how many leading tokens do not depend on the last user message; None if unknown.
        starts_reasoning: the prompt ends with the marker that starts reasoning.
        describes_tools: tools are described in plain text, so calls have the format of `fallback_tools`.
        continues_answer: the prompt ends within an answer, which the output continues.
        image_positions: for each image, the positions of the tokens that stand for its features.
    """

    tokens: list[int]
    stop: list[str] = field(default_factory=list)
    shared_prefix_length: int | None = None
    starts_reasoning: bool = False
    describes_tools: bool = False
    continues_answer: bool = False
    image_positions: list[list[int]] = field(default_factory=list)


class SplitChat(NamedTuple):
    """A rendered chat, split at the end of its last message.

    Attributes:
        before: the chat up to the end of the last message.
        after: what follows, up to the beginning of the answer.
        answer_prefix: what every answer begins with.
    """

    before: str
    after: str
    answer_prefix: str = ""


class ChatTemplate:
    """A model's chat template and what it accepts, determined once. Safe on any thread.

    Args:
        tokenizer: mlx_lm's tokenizer wrapper.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template, self._tool_template = _load_templates(tokenizer)

    def encode(
        self,
        chat: ChatPrompt,
        max_context: int | None,
        *,
        find_shared_prefix: bool = False,
        images: ImageTexts | None = None,
    ) -> EncodedPrompt:
        """Render and tokenize a chat; `images` is what its images become.

        Raises:
            InvalidRequest: the template rejects the messages in every form, or a template variable is reserved.
            ContextLengthExceeded: the chat is far too long.
        """
        _check_variables(chat)
        if images is not None:
            return self._encode(images.mark(chat), max_context, images)
        encoded = self._encode(chat, max_context)
        if find_shared_prefix:
            return replace(encoded, shared_prefix_length=self._shared_prefix_length(chat, encoded.tokens))
        return encoded

    def render(self, chat: ChatPrompt) -> str:
        """Render a chat as text.

        Raises:
            InvalidRequest: the template rejects the messages in every form.
        """
        return self._try_forms(chat, lambda render, _: str(render(tokenize=False)))

    def split(self, chat: ChatPrompt) -> SplitChat:
        """Render a chat so that text can be added to its last message. The answer begins without reasoning.

        Raises:
            InvalidRequest: the template rejects the messages, does not render the last one unchanged, or a template
                variable is reserved.
        """
        _check_variables(chat)
        marker = secrets.token_hex(16)
        marked = _append_text(chat, marker)
        has_template = self._template is not None
        parts = (self.render(marked) if has_template else _plain_text(marked)).split(marker)
        if len(parts) != 2:
            raise InvalidRequest(
                "the model's chat template does not render the last message unchanged",
                location=("prompt", "messages", len(chat.messages) - 1),
            )
        before, after = parts
        return SplitChat(before, self._open_answer(after)) if has_template else SplitChat(before, after, " ")

    def _open_answer(self, text: str) -> str:
        """Append to the end of a rendered chat what separates it from the text of an answer without reasoning."""
        if text.endswith(_OPEN_HEADER):
            return text + _FINAL_CHANNEL
        if self._tokenizer.has_thinking and text.rstrip().endswith(self._tokenizer.think_start):
            return f"{text.rstrip()}\n\n{self._tokenizer.think_end}\n\n"
        return text

    def _encode(self, chat: ChatPrompt, max_context: int | None, images: ImageTexts | None = None) -> EncodedPrompt:
        if self._template is None and images is not None:
            raise InvalidRequest("the model has no chat template, so that it cannot be sent images", location=_MESSAGES)
        if self._template is None:
            return self._encode_without_template(chat, max_context)
        is_large = context_length.is_large(len(msgspec.json.encode(chat)), max_context)

        def encode(render: Callable[..., Any], profile: TemplateProfile) -> EncodedPrompt:
            if is_large:
                # Check the rendered text, not the messages: templates drop parts of them, such as earlier reasoning.
                context_length.check_text(self._tokenizer, render(tokenize=False), max_context)
            positions: list[list[int]] = []
            if images is not None:
                text = self._render_continued(render) if chat.continues_answer else str(render(tokenize=False))
                tokens, positions = images.encode(self._tokenizer, text)
            else:
                tokens = self._encode_continued(render) if chat.continues_answer else list(render(tokenize=True))
            return EncodedPrompt(
                tokens,
                starts_reasoning=self._ends_with_reasoning_marker(tokens),
                describes_tools=profile.tools == "text",
                continues_answer=chat.continues_answer,
                image_positions=positions,
            )

        marked = _append_text(chat, _END_OF_ANSWER) if chat.continues_answer else chat
        return self._try_forms(marked, encode, *([images.forms] if images is not None else []))

    def _encode_continued(self, render: Callable[..., Any]) -> list[int]:
        """Encode a chat up to the mark at the end of its last message."""
        return list(self._tokenizer.encode(self._render_continued(render), add_special_tokens=False))

    def _render_continued(self, render: Callable[..., Any]) -> str:
        """Render a chat up to the mark at the end of its last message."""
        text, mark, _ = str(render(tokenize=False, add_generation_prompt=False)).rpartition(_END_OF_ANSWER)
        if not mark:
            raise ValueError("the last message is left out, so that it cannot be continued")
        return text

    def _try_forms(
        self,
        chat: ChatPrompt,
        use: Callable[[Callable[..., Any], TemplateProfile], _Result],
        image_forms: Sequence[Callable[[TemplateInput], TemplateInput]] = (lambda given: given,),
    ) -> _Result:
        """Call `use` with the renderer of the chat in each form until one is accepted."""
        uses_tools = chat.tools or any(message.role == "tool" or message.tool_calls for message in chat.messages)
        template = self._tool_template if uses_tools else self._template
        assert template is not None, "callers check that there is a template"
        failure: Exception | None = None
        for profile, form in itertools.product(_fallback_profiles(template.profile, chat), image_forms):
            try:
                return use(partial(template.render, form(adapt(chat, profile)), **chat.template_variables), profile)
            except ContextLengthExceeded:
                raise
            except Exception as error:  # noqa: BLE001  a template is a program that can raise anything
                failure = failure or error
        raise InvalidRequest(
            f"the model's chat template rejects these messages: {str(failure) or type(failure).__name__}",
            location=_MESSAGES,
        ) from failure

    def _encode_without_template(self, chat: ChatPrompt, max_context: int | None) -> EncodedPrompt:
        text = _plain_text(chat)
        context_length.check_text(self._tokenizer, text, max_context)
        tokens = list(self._tokenizer.encode(text))
        return EncodedPrompt(tokens, [FALLBACK_STOP], describes_tools=True, continues_answer=chat.continues_answer)

    def _ends_with_reasoning_marker(self, tokens: list[int]) -> bool:
        if not self._tokenizer.has_thinking:
            return False
        tail = str(self._tokenizer.decode(tokens[-_TAIL_TOKENS:]))
        return tail.rstrip().endswith(self._tokenizer.think_start)

    def _shared_prefix_length(self, chat: ChatPrompt, tokens: list[int]) -> int | None:
        """Compare the prompt with one whose last user message differs from its first character on."""
        last_user = next((i for i in reversed(range(len(chat.messages))) if chat.messages[i].role == "user"), None)
        if last_user is None:
            return None
        message = chat.messages[last_user]
        changed = msgspec.structs.replace(
            message, content=[TextPart(text="1" if message.text.startswith("0") else "0")]
        )
        messages = [*chat.messages[:last_user], changed, *chat.messages[last_user + 1 :]]
        try:
            others = self._encode(msgspec.structs.replace(chat, messages=messages), None).tokens
        except InvalidRequest:
            return None
        pairs = enumerate(zip(tokens, others, strict=False))
        return next((i for i, (one, other) in pairs if one != other), min(len(tokens), len(others))) or None


class _Template:
    """One of a model's chat templates.

    Args:
        tokenizer: mlx_lm's tokenizer wrapper.
        source: the template's text; None for the only template of the tokenizer.
    """

    def __init__(self, tokenizer: Any, source: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._options: dict[str, Any] = {"add_generation_prompt": True}
        if source is not None:
            self._options["chat_template"] = source
        # A variable of transformers up to version 4.
        if _EXTRA_TOKENS in str(source or tokenizer.chat_template):
            self._options[_EXTRA_TOKENS] = list(tokenizer.extra_special_tokens)
        self.profile = find_profile(lambda template_input: str(self.render(template_input, tokenize=False)))

    def render(self, template_input: TemplateInput, /, *, tokenize: bool, **variables: Any) -> Any:
        messages, tools, tool_variables = template_input
        options = {**self._options, **tool_variables, **variables}
        return self._tokenizer.apply_chat_template(messages, tools=tools, tokenize=tokenize, **options)


def _load_templates(tokenizer: Any) -> tuple[_Template | None, _Template | None]:
    """Return the template of plain chats and that of chats with tools, which may be the same."""
    sources = tokenizer.chat_template
    if not tokenizer.has_chat_template or sources == {}:
        return None, None
    if not isinstance(sources, dict):
        template = _Template(tokenizer)
        return template, template
    default = _Template(tokenizer, sources.get("default") or next(iter(sources.values())))
    if _TOOL_TEMPLATE not in sources:
        return default, default
    tool_template = _Template(tokenizer, sources[_TOOL_TEMPLATE])
    return default, default if tool_template.profile.tools == "text" else tool_template


def _plain_text(chat: ChatPrompt) -> str:
    """Render a chat for a model without a template."""
    messages = fallback_tools.describe_tools(chat.messages, chat.tools)
    lines = [f"{message.role}: {message.text}" for message in messages]
    return "\n".join(lines if chat.continues_answer else [*lines, "assistant:"])


def _append_text(chat: ChatPrompt, text: str) -> ChatPrompt:
    """Append text to the last message."""
    last = chat.messages[-1]
    content = list(last.content)
    if content and isinstance(part := content[-1], TextPart):
        content, text = content[:-1], part.text + text
    last = msgspec.structs.replace(last, content=[*content, TextPart(text=text)])
    return msgspec.structs.replace(chat, messages=[*chat.messages[:-1], last])


def _fallback_profiles(profile: TemplateProfile, chat: ChatPrompt) -> Iterator[TemplateProfile]:
    """Yield the profiles to try: the template's own one, then simpler ones for what its determination did not cover."""
    yield profile
    if chat.tools and profile.tools != "text":
        yield replace(profile, simple_tools=True)
    if profile.tools != "text" or profile.calls != "text":
        yield replace(profile, tools="text", calls="text")
    yield PLAIN_TEXT


def _check_variables(chat: ChatPrompt) -> None:
    if reserved := sorted(_RESERVED_VARIABLES & chat.template_variables.keys()):
        raise InvalidRequest(
            f"{as_json(reserved[0])} is not a chat template variable; leave it out",
            location=("prompt", "template_variables", reserved[0]),
        )
