import copy

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from osaurusd.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import ChatPrompt, Message, TextPrompt, TokenPrompt, ToolCall
from osaurusd.worker.frontend import prompts
from tests.osaurusd.worker import families

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
    """A chat from pairs of role and content."""
    return ChatPrompt(messages=[Message(role=role, content=content) for role, content in turns])


@pytest.fixture(scope="module")
def family(tiny_folder, tmp_path_factory):
    """Makes the tokenizer of a family of models."""
    return families.maker(tiny_folder, tmp_path_factory.mktemp("families"))


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
    assert (prompt.stop, prompt.boundary, prompt.thinking) == ([], None, False)


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


@pytest.mark.parametrize("prompt", [TextPrompt(text="word " * 300), TokenPrompt(tokens=[5] * 300)])
def test_a_plain_prompt_that_leaves_no_room_is_refused(tokenizer, prompt):
    with pytest.raises(ContextLengthExceeded, match=r"\b256 tokens.*\b30\d tokens") as caught:
        prompts.encode(tokenizer, prompt, 256)

    assert caught.value.param == "prompt"


# Template variables


def test_variables_reach_the_template(family):
    tokenizer = family("qwen3")
    quiet = ChatPrompt(messages=chat(("user", "hi")).messages, template={"enable_thinking": False})

    assert tokenizer.decode(prompts.encode(tokenizer, quiet, None).tokens).endswith("<think>\n\n</think>\n\n")
    assert "<think>" not in render(tokenizer, ("user", "hi"))


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "tools", "messages"])
def test_what_is_no_variable_is_refused_by_name(tokenizer, name):
    with pytest.raises(InvalidRequest, match=name) as caught:
        prompts.encode(tokenizer, ChatPrompt(messages=chat(("user", "hi")).messages, template={name: "x"}), None)

    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_a_template_that_fails_in_some_other_way_is_the_requests_fault(with_template):
    with pytest.raises(InvalidRequest) as caught:
        render(with_template("{{ messages[0].content + 1 }}"), ("user", "hi"))

    assert caught.value.param == "messages"


# Tools

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def used_tool(arguments='{"city": "Oslo"}', **fields):
    """A chat in which the assistant asked for the weather and the user says thanks."""
    call = ToolCall(id="call_1", name="weather", arguments=arguments)
    return ChatPrompt(
        messages=[
            Message(role="user", content="And in Oslo?"),
            Message(role="assistant", tool_calls=[call]),
            Message(role="tool", content="rain", name="weather", tool_call_id="call_1"),
            Message(role="user", content="Thanks."),
        ],
        tools=[WEATHER],
        **fields,
    )


def test_tools_calls_and_results_reach_a_template_that_knows_them(family):
    tokenizer = family("qwen3")

    text = tokenizer.decode(prompts.encode(tokenizer, used_tool(), None).tokens)

    assert '"name": "weather", "parameters"' in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>tool\nrain<|im_end|>" in text
    assert "You can call functions" not in text


def test_arguments_that_are_no_json_reach_the_template_as_they_are(family):
    tokenizer = family("qwen3")

    text = tokenizer.decode(prompts.encode(tokenizer, used_tool("{oops"), None).tokens)

    assert '"arguments": "{oops"' in text


def test_arguments_are_text_for_a_template_that_takes_them_so(family):
    tokenizer = family("deepseek-r1")

    text = tokenizer.decode(prompts.encode(tokenizer, used_tool(), None).tokens)

    assert '```json\n{"city": "Oslo"}\n```' in text


def test_a_template_that_knows_no_tools_gets_all_of_it_as_text(tokenizer):
    text = tokenizer.decode(prompts.encode(tokenizer, used_tool(), None).tokens)

    head, rest = text.split("<|im_end|>\n", 1)
    assert '{"name": "weather", "parameters"' in head
    assert "<tool_call>" in head
    assert rest == (
        "<|im_start|>user\nAnd in Oslo?<|im_end|>\n"
        "<|im_start|>assistant\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Oslo"}}\n'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\nResult of weather:\nrain\n\nThanks.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tools_are_explained_after_what_the_system_turn_says(tokenizer):
    system = Message(role="system", content="Be brief.")
    told = ChatPrompt(messages=[system, *used_tool().messages], tools=[WEATHER])

    text = tokenizer.decode(prompts.encode(tokenizer, told, None).tokens)

    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
    assert text.count("<|im_start|>system") == 1


def test_results_are_text_also_where_no_tool_is_offered_any_more(tokenizer):
    text = tokenizer.decode(prompts.encode(tokenizer, ChatPrompt(messages=used_tool().messages), None).tokens)

    assert "Result of weather:\nrain" in text
    assert "You can call functions" not in text


def test_without_a_template_tools_are_explained_too(with_template):
    tokenizer = with_template(None)

    assert "system: You can call functions." in tokenizer.decode(prompts.encode(tokenizer, used_tool(), None).tokens)


def test_an_earlier_thought_reaches_the_template(with_template):
    tokenizer = with_template("{% for m in messages %}[{{ m.reasoning_content }}]{{ m.content }}{% endfor %}")
    turns = [Message(role="assistant", content="Yes.", reasoning="hm")]

    assert "[hm]Yes." == tokenizer.decode(prompts.encode(tokenizer, ChatPrompt(messages=turns), None).tokens)


# Thoughts


def test_a_prompt_that_opens_a_thought_says_so(family):
    assert prompts.encode(family("deepseek-r1"), chat(("user", "hi")), None).thinking


@pytest.mark.parametrize("text", ["hi", "What does <think> mean?", "<think>", "<think>\n"])
def test_a_thought_is_not_opened_by_what_the_user_says(family, text):
    assert not prompts.encode(family("qwen3"), chat(("user", text)), None).thinking


def test_a_thought_that_the_prompt_closes_is_not_open(family):
    quiet = ChatPrompt(messages=chat(("user", "hi")).messages, template={"enable_thinking": False})

    assert not prompts.encode(family("qwen3"), quiet, None).thinking


# Boundaries


@pytest.mark.parametrize("last", ["Hi", "0", "1", "\n\nso"])
def test_the_boundary_is_where_the_last_user_turn_begins(tokenizer, last):
    turns = [("system", "s"), ("user", "one"), ("assistant", "two"), ("user", last)]

    prompt = prompts.encode(tokenizer, chat(*turns), None, find_boundary=True)

    before, after = (
        tokenizer.decode(prompt.tokens[: prompt.boundary]),
        tokenizer.decode(prompt.tokens[prompt.boundary :]),
    )
    assert "two<|im_end|>\n<|im_start|>user" in before
    assert before + after == render(tokenizer, *turns)
    assert last.strip() in after


def test_the_boundary_stands_before_what_was_folded_into_the_user_turn(with_template):
    tokenizer = with_template(NO_SYSTEM)

    prompt = prompts.encode(tokenizer, chat(("system", "Be brief."), ("user", "Hi")), None, find_boundary=True)

    assert "Hi" not in tokenizer.decode(prompt.tokens[: prompt.boundary])


def test_without_a_user_turn_there_is_no_boundary(tokenizer):
    assert prompts.encode(tokenizer, chat(("system", "s")), None, find_boundary=True).boundary is None


# Text and tokens


def test_text_is_continued_as_it_stands(tokenizer):
    assert tokenizer.encode("Once upon") == prompts.encode(tokenizer, TextPrompt(text="Once upon"), None).tokens


def test_nothing_is_continued_as_the_beginning_of_a_document(tokenizer):
    assert [tokenizer.bos_token_id] == prompts.encode(tokenizer, TextPrompt(text=""), None).tokens


def test_tokens_are_taken_as_they_are(tokenizer):
    assert [5, 49151, 0] == prompts.encode(tokenizer, TokenPrompt(tokens=[5, 49151, 0]), None).tokens


@pytest.mark.parametrize("tokens", [[5, 49152], [-1]])
def test_tokens_outside_the_vocabulary_are_refused(tokenizer, tokens):
    with pytest.raises(InvalidRequest, match="0 to 49151") as caught:
        prompts.encode(tokenizer, TokenPrompt(tokens=tokens), None)

    assert caught.value.param == "prompt"


def test_no_tokens_are_refused(tokenizer):
    with pytest.raises(InvalidRequest, match="empty prompt") as caught:
        prompts.encode(tokenizer, TokenPrompt(tokens=[]), None)

    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen-coder", "<|fim_prefix|>def f(<|fim_suffix|>): pass<|fim_middle|>"),
        ("codestral", "[SUFFIX]): pass[PREFIX]def f("),
    ],
)
def test_a_suffix_is_put_in_the_form_of_the_model(family, name, expected):
    tokenizer = family(name)

    prompt = prompts.encode(tokenizer, TextPrompt(text="def f(", suffix="): pass"), None)

    assert expected == tokenizer.decode(prompt.tokens)
    assert tokenizer.encode(expected) == prompt.tokens


def test_a_suffix_is_refused_where_the_model_cannot_fill_in(tokenizer):
    with pytest.raises(UnsupportedParameter, match="filling in") as caught:
        prompts.encode(tokenizer, TextPrompt(text="a", suffix="b"), None)

    assert caught.value.param == "suffix"
