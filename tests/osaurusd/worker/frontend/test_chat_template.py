import pytest

from osaurusd.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import (
    ChatPrompt,
    Message,
    TextPart,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolResultPart,
)
from osaurusd.worker.frontend.prompt_encoder import PromptEncoder
from tests.osaurusd.worker import families

NO_SYSTEM = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('system role not supported') }}{% endif %}"
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


def chat(*messages):
    """Build a chat from pairs of role and content."""
    return ChatPrompt(messages=[Message.from_text(role, content) for role, content in messages])


@pytest.fixture(scope="module")
def family(tiny_folder, tmp_path_factory):
    """Create the tokenizer of a model family."""
    return families.tokenizer_factory(tiny_folder, tmp_path_factory.mktemp("families"))


def encode(tokenizer, prompt, max_context, **options):
    return PromptEncoder(tokenizer, max_context, **options).encode(prompt)


def render(tokenizer, *messages):
    """Return the rendered prompt of a chat."""
    return tokenizer.decode(encode(tokenizer, chat(*messages), None).tokens)


def test_the_chat_template_is_applied_with_a_generation_prompt(tokenizer):
    prompt = encode(tokenizer, chat(("system", "Be brief."), ("user", "Hi")), None)

    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(expected, add_special_tokens=False) == prompt.tokens
    assert (prompt.stop, prompt.shared_prefix_length, prompt.starts_reasoning) == ([], None, False)


def test_special_tokens_of_the_template_are_single_tokens(tokenizer):
    (start,) = tokenizer.encode("<|im_start|>", add_special_tokens=False)

    prompt = encode(tokenizer, chat(("system", "s"), ("user", "u")), None)

    assert prompt.tokens.count(start) == 3


def test_all_messages_are_rendered_in_order(with_template):
    tokenizer = with_template(NO_SYSTEM)

    text = render(tokenizer, ("user", "one"), ("assistant", "two"), ("user", "three"))

    assert text == "<user>one<assistant>two<user>three<assistant>"


# Templates that reject messages


def test_rejected_system_text_moves_to_the_first_user_message(with_template):
    text = render(with_template(NO_SYSTEM), ("system", "Be brief."), ("user", "Hi"))

    assert text == "<user>Be brief.\n\nHi<assistant>"


def test_later_system_text_becomes_user_text_at_its_position(with_template):
    text = render(
        with_template(NO_SYSTEM), ("system", "a"), ("user", "one"), ("assistant", "two"), ("system", "b"), ("user", "3")
    )

    assert text == "<user>a\n\none<assistant>two<user>b\n\n3<assistant>"


def test_system_text_moves_to_a_user_message_after_an_assistant_message(with_template):
    text = render(with_template(NO_SYSTEM), ("system", "a"), ("assistant", "hello"), ("user", "hi"))

    assert text == "<assistant>hello<user>a\n\nhi<assistant>"


def test_system_text_stays_if_the_template_accepts_it(tokenizer):
    assert "<|im_start|>system\na<|im_end|>" in render(tokenizer, ("system", "a"), ("user", "hi"))


def test_messages_of_one_role_in_a_row_are_joined_if_roles_must_alternate(with_template):
    tokenizer = with_template(ALTERNATING)

    assert render(tokenizer, ("user", "one"), ("user", "two")) == "<user>one\n\ntwo<assistant>"
    assert render(tokenizer, ("system", "s"), ("user", "one"), ("user", "two")) == "<user>s\n\none\n\ntwo<assistant>"
    assert render(tokenizer, ("user", ""), ("user", "two")) == "<user>two<assistant>"
    assert render(tokenizer, ("assistant", "hello"), ("user", "hi")) == "<user><assistant>hello<user>hi<assistant>"


def test_messages_of_one_role_in_a_row_stay_separate_if_the_template_accepts_them(tokenizer):
    assert "one<|im_end|>\n<|im_start|>user\ntwo" in render(tokenizer, ("user", "one"), ("user", "two"))


def test_system_text_without_a_user_message_becomes_one(with_template):
    assert render(with_template(NO_SYSTEM), ("system", "Be brief.")) == "<user>Be brief.<assistant>"


def test_a_broken_template_is_reported(with_template):
    with pytest.raises(InvalidRequest, match="chat template"):
        render(with_template("{% if %}"), ("user", "hi"))


# Without a template


def test_without_a_template_messages_are_lines_and_the_next_user_line_is_a_stop_string(with_template):
    tokenizer = with_template(None)

    prompt = encode(tokenizer, chat(("system", "Be brief."), ("user", "Hi")), None)

    assert tokenizer.decode(prompt.tokens) == "system: Be brief.\nuser: Hi\nassistant:"
    assert prompt.stop == ["\nuser:"]


# Limits


@pytest.mark.parametrize("template", ["", "{% for message in messages %}{{ message.content }}{% endfor %}"])
def test_an_empty_prompt_is_rejected(with_template, template):
    with pytest.raises(InvalidRequest, match="prompt is empty") as caught:
        encode(with_template(template or "{# nothing #}"), chat(("user", "")), 2048)

    assert caught.value.location == ("prompt",)


def test_a_prompt_without_room_for_output_is_rejected_with_both_numbers(tokenizer):
    messages = chat(("user", "word " * 500))
    count = len(encode(tokenizer, messages, None).tokens)

    with pytest.raises(ContextLengthExceeded, match=rf"\b{count} tokens.*\b256 tokens") as caught:
        encode(tokenizer, messages, 256)

    assert count > 500
    assert caught.value.location == ("prompt",)


def test_a_prompt_leaves_room_for_at_least_one_token(tokenizer):
    messages = chat(("user", "hello"))
    count = len(encode(tokenizer, messages, None).tokens)

    assert count == len(encode(tokenizer, messages, count + 1).tokens)
    with pytest.raises(ContextLengthExceeded):
        encode(tokenizer, messages, count)


def test_without_a_known_context_length_any_prompt_is_accepted(tokenizer):
    assert len(encode(tokenizer, chat(("user", "word " * 3000)), None).tokens) > 3000


@pytest.mark.parametrize("prompt", [TextPrompt(text="word " * 300), TokenPrompt(tokens=[5] * 300)])
def test_a_raw_prompt_without_room_for_output_is_rejected(tokenizer, prompt):
    with pytest.raises(ContextLengthExceeded, match=r"\b30\d tokens.*\b256 tokens") as caught:
        encode(tokenizer, prompt, 256)

    assert caught.value.location[0] == "prompt"


# Template variables


def test_template_variables_reach_the_template(family):
    tokenizer = family("qwen3")
    quiet = ChatPrompt(messages=chat(("user", "hi")).messages, template_variables={"enable_thinking": False})

    assert tokenizer.decode(encode(tokenizer, quiet, None).tokens).endswith("<think>\n\n</think>\n\n")
    assert "<think>" not in render(tokenizer, ("user", "hi"))


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "tools", "messages"])
def test_reserved_template_variables_are_rejected_by_name(tokenizer, name):
    with pytest.raises(InvalidRequest, match=name) as caught:
        encode(tokenizer, ChatPrompt(messages=chat(("user", "hi")).messages, template_variables={name: "x"}), None)

    assert caught.value.location == ("prompt", "template_variables", name)


def test_a_template_error_of_any_kind_is_an_invalid_request(with_template):
    with pytest.raises(InvalidRequest) as caught:
        render(with_template("{{ messages[0].content + 1 }}"), ("user", "hi"))

    assert caught.value.location == ("prompt", "messages")


# Tools

WEATHER = Tool(name="weather")


def chat_with_result(arguments='{"city": "Oslo"}', **fields):
    """Build a chat with a call, its result and a further user message."""
    call = ToolCall(id="call_1", name="weather", arguments=arguments)
    return ChatPrompt(
        messages=[
            Message.from_text("user", "And in Oslo?"),
            Message(role="assistant", tool_calls=[call]),
            Message(
                role="tool",
                content=[ToolResultPart(call_id="call_1", name="weather", content=[TextPart(text="rain")])],
            ),
            Message.from_text("user", "Thanks."),
        ],
        tools=[WEATHER],
        **fields,
    )


def test_tools_calls_and_results_reach_a_template_that_supports_them(family):
    tokenizer = family("qwen3")

    text = tokenizer.decode(encode(tokenizer, chat_with_result(), None).tokens)

    assert '"name": "weather", "parameters"' in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>tool\nrain<|im_end|>" in text
    assert "You can call functions" not in text


def test_arguments_that_are_not_json_reach_the_template_unchanged(family):
    tokenizer = family("qwen3")

    text = tokenizer.decode(encode(tokenizer, chat_with_result("{oops"), None).tokens)

    assert '"arguments": "{oops"' in text


def test_a_template_without_tool_support_gets_tools_calls_and_results_as_text(tokenizer):
    text = tokenizer.decode(encode(tokenizer, chat_with_result(), None).tokens)

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


def test_each_result_of_a_message_becomes_a_template_message(family):
    tokenizer = family("qwen3")
    results = [ToolResultPart(call_id=f"call_{text}", content=[TextPart(text=text)]) for text in ("sun", "rain")]
    chat = ChatPrompt(messages=[Message.from_text("user", "hi"), Message(role="tool", content=results)])

    text = tokenizer.decode(encode(tokenizer, chat, None).tokens)

    assert "<|im_start|>tool\nsun<|im_end|>\n<|im_start|>tool\nrain<|im_end|>" in text


def test_tool_instructions_follow_the_system_text(tokenizer):
    system = Message.from_text("system", "Be brief.")
    prompt = ChatPrompt(messages=[system, *chat_with_result().messages], tools=[WEATHER])

    text = tokenizer.decode(encode(tokenizer, prompt, None).tokens)

    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
    assert text.count("<|im_start|>system") == 1


def test_results_are_text_even_without_tools(tokenizer):
    text = tokenizer.decode(encode(tokenizer, ChatPrompt(messages=chat_with_result().messages), None).tokens)

    assert "Result of weather:\nrain" in text
    assert "You can call functions" not in text


def test_tools_are_described_without_a_template(with_template):
    tokenizer = with_template(None)

    assert "system: You can call functions." in tokenizer.decode(encode(tokenizer, chat_with_result(), None).tokens)


def test_earlier_reasoning_reaches_the_template(with_template):
    tokenizer = with_template("{% for m in messages %}[{{ m.reasoning_content }}]{{ m.content }}{% endfor %}")
    turns = [Message.from_text("assistant", "Yes.", reasoning="hm")]

    assert "[hm]Yes." == tokenizer.decode(encode(tokenizer, ChatPrompt(messages=turns), None).tokens)


# Reasoning


def test_a_prompt_that_starts_reasoning_is_marked(family):
    assert encode(family("deepseek-r1"), chat(("user", "hi")), None).starts_reasoning


@pytest.mark.parametrize("text", ["hi", "What does <think> mean?", "<think>", "<think>\n"])
def test_user_text_does_not_start_reasoning(family, text):
    assert not encode(family("qwen3"), chat(("user", text)), None).starts_reasoning


def test_reasoning_that_the_prompt_ends_is_not_started(family):
    quiet = ChatPrompt(messages=chat(("user", "hi")).messages, template_variables={"enable_thinking": False})

    assert not encode(family("qwen3"), quiet, None).starts_reasoning


# Shared prefixes


@pytest.mark.parametrize("last", ["Hi", "0", "1", "\n\nso"])
def test_the_shared_prefix_ends_where_the_last_user_message_begins(tokenizer, last):
    turns = [("system", "s"), ("user", "one"), ("assistant", "two"), ("user", last)]

    prompt = encode(tokenizer, chat(*turns), None, find_shared_prefix=True)

    before, after = (
        tokenizer.decode(prompt.tokens[: prompt.shared_prefix_length]),
        tokenizer.decode(prompt.tokens[prompt.shared_prefix_length :]),
    )
    assert "two<|im_end|>\n<|im_start|>user" in before
    assert before + after == render(tokenizer, *turns)
    assert last.strip() in after


def test_the_shared_prefix_excludes_system_text_folded_into_the_user_message(with_template):
    tokenizer = with_template(NO_SYSTEM)

    prompt = encode(tokenizer, chat(("system", "Be brief."), ("user", "Hi")), None, find_shared_prefix=True)

    assert "Hi" not in tokenizer.decode(prompt.tokens[: prompt.shared_prefix_length])


def test_without_a_user_message_the_shared_prefix_is_unknown(tokenizer):
    assert encode(tokenizer, chat(("system", "s")), None, find_shared_prefix=True).shared_prefix_length is None


# Text and tokens


def test_raw_text_is_encoded_unchanged(tokenizer):
    assert tokenizer.encode("Once upon") == encode(tokenizer, TextPrompt(text="Once upon"), None).tokens


def test_empty_text_starts_a_document(tokenizer):
    assert [tokenizer.bos_token_id] == encode(tokenizer, TextPrompt(text=""), None).tokens


def test_token_ids_are_used_unchanged(tokenizer):
    assert [5, 4095, 0] == encode(tokenizer, TokenPrompt(tokens=[5, 4095, 0]), None).tokens


@pytest.mark.parametrize("tokens", [[5, 4096], [-1]])
def test_token_ids_outside_the_vocabulary_are_rejected(tokenizer, tokens):
    with pytest.raises(InvalidRequest, match="0 to 4095") as caught:
        encode(tokenizer, TokenPrompt(tokens=tokens), None)

    assert caught.value.location[0] == "prompt"


def test_an_empty_token_list_is_rejected(tokenizer):
    with pytest.raises(InvalidRequest, match="prompt is empty") as caught:
        encode(tokenizer, TokenPrompt(tokens=[]), None)

    assert caught.value.location[0] == "prompt"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen-coder", "<|fim_prefix|>def f(<|fim_suffix|>): pass<|fim_middle|>"),
        ("codestral", "[SUFFIX]): pass[PREFIX]def f("),
    ],
)
def test_a_suffix_is_encoded_in_the_format_of_the_model_family(family, name, expected):
    tokenizer = family(name)

    prompt = encode(tokenizer, TextPrompt(text="def f(", suffix="): pass"), None)

    assert expected == tokenizer.decode(prompt.tokens)
    assert tokenizer.encode(expected) == prompt.tokens


def test_a_suffix_is_rejected_without_fill_in_the_middle_support(tokenizer):
    with pytest.raises(UnsupportedParameter, match="fill-in-the-middle") as caught:
        encode(tokenizer, TextPrompt(text="a", suffix="b"), None)

    assert caught.value.location == ("prompt", "suffix")
