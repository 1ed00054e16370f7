import copy

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from osaurusd import ipc
from osaurusd.errors import ContextLengthExceeded, InvalidRequest
from osaurusd.worker import prompts

NO_SYSTEM = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('this model knows no system role') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

ALTERNATING = (
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}"
    "{% endfor %}<assistant>"
)


def chat(*turns):
    """Messages from pairs of role and content."""
    return [ipc.Message(role=role, content=content) for role, content in turns]


@pytest.fixture
def with_template(tokenizer):
    """Makes tokenizers with some other chat template, or None for none."""

    def with_template(template):
        inner = copy.copy(tokenizer._tokenizer)
        inner.chat_template = template
        return TokenizerWrapper(inner, type(tokenizer._detokenizer))

    return with_template


def render(tokenizer, *turns, context_length=None):
    """The prompt of a chat, as text again."""
    return tokenizer.decode(prompts.encode(tokenizer, chat(*turns), context_length).tokens)


def test_the_chat_template_is_applied_with_a_generation_prompt(tokenizer):
    prompt = prompts.encode(tokenizer, chat(("system", "Be brief."), ("user", "Hi")), None)

    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(expected, add_special_tokens=False) == prompt.tokens
    assert prompt.stop == []


def test_special_tokens_of_the_template_are_single_tokens(tokenizer):
    (start,) = tokenizer.encode("<|im_start|>", add_special_tokens=False)

    prompt = prompts.encode(tokenizer, chat(("system", "s"), ("user", "u")), None)

    assert prompt.tokens.count(start) == 3


def test_all_turns_are_there_in_order(with_template):
    tokenizer = with_template(NO_SYSTEM)

    text = render(tokenizer, ("user", "one"), ("assistant", "two"), ("user", "three"))

    assert text == "<user>one<assistant>two<user>three<assistant>"


# Templates that refuse


def test_system_text_that_a_template_refuses_begins_the_first_user_turn(with_template):
    text = render(with_template(NO_SYSTEM), ("system", "Be brief."), ("user", "Hi"))

    assert text == "<user>Be brief.\n\nHi<assistant>"


def test_all_system_text_is_folded_wherever_it_stands(with_template):
    text = render(
        with_template(NO_SYSTEM), ("system", "a"), ("user", "one"), ("assistant", "two"), ("system", "b"), ("user", "3")
    )

    assert text == "<user>a\n\nb\n\none<assistant>two<user>3<assistant>"


def test_the_first_user_turn_may_come_after_one_of_the_assistant(with_template):
    text = render(with_template(NO_SYSTEM), ("system", "a"), ("assistant", "hello"), ("user", "hi"))

    assert text == "<assistant>hello<user>a\n\nhi<assistant>"


def test_messages_are_not_folded_where_the_template_takes_them(tokenizer):
    assert "<|im_start|>system\na<|im_end|>" in render(tokenizer, ("system", "a"), ("user", "hi"))


def test_a_template_that_refuses_for_another_reason_is_the_requests_fault(with_template):
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        render(with_template(ALTERNATING), ("user", "one"), ("user", "two"))

    assert caught.value.param == "messages"


def test_a_template_that_refuses_the_folded_messages_too_says_why(with_template):
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        render(with_template(ALTERNATING), ("system", "s"), ("user", "one"), ("user", "two"))

    assert caught.value.param == "messages"


def test_system_text_without_any_user_turn_cannot_be_folded(with_template):
    with pytest.raises(InvalidRequest, match="knows no system role"):
        render(with_template(NO_SYSTEM), ("system", "Be brief."))


def test_a_template_that_is_broken_is_refused_with_its_error(with_template):
    with pytest.raises(InvalidRequest, match="chat template"):
        render(with_template("{% if %}"), ("user", "hi"))


# Without a template


def test_without_a_template_turns_are_lines_and_the_next_user_line_ends_the_answer(with_template):
    tokenizer = with_template(None)

    prompt = prompts.encode(tokenizer, chat(("system", "Be brief."), ("user", "Hi")), None)

    assert tokenizer.decode(prompt.tokens) == "system: Be brief.\nuser: Hi\nassistant:"
    assert prompt.stop == ["\nuser:"]


# Limits


@pytest.mark.parametrize("template", ["", "{% for message in messages %}{{ message.content }}{% endfor %}"])
def test_an_empty_prompt_is_refused(with_template, template):
    with pytest.raises(InvalidRequest, match="empty prompt") as caught:
        prompts.encode(with_template(template or "{# nothing #}"), chat(("user", "")), 2048)

    assert caught.value.param == "messages"


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(tokenizer):
    messages = chat(("user", "word " * 500))
    count = len(prompts.encode(tokenizer, messages, None).tokens)

    with pytest.raises(ContextLengthExceeded, match=rf"\b256 tokens.*\b{count} tokens") as caught:
        prompts.encode(tokenizer, messages, 256)

    assert count > 500
    assert caught.value.param == "messages"


def test_a_prompt_must_leave_room_for_one_token(tokenizer):
    messages = chat(("user", "hello"))
    count = len(prompts.encode(tokenizer, messages, None).tokens)

    assert count == len(prompts.encode(tokenizer, messages, count + 1).tokens)
    with pytest.raises(ContextLengthExceeded):
        prompts.encode(tokenizer, messages, count)


def test_a_model_that_says_nothing_of_its_context_takes_any_prompt(tokenizer):
    assert len(prompts.encode(tokenizer, chat(("user", "word " * 3000)), None).tokens) > 3000
