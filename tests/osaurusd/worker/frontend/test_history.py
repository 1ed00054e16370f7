import copy
import functools
import re

import pytest
from mlx_lm.chat_templates import deepseek_v32
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers.utils.chat_template_utils import render_jinja_template

from osaurusd.inference.request import ChatPrompt, Message, TextPart, ToolCall, ToolResultPart
from osaurusd.worker.frontend.chat_template import ChatTemplate
from osaurusd.worker.frontend.history import TemplateProfile
from osaurusd.worker.frontend.template_probe import find_profile
from tests.osaurusd.worker.histories import TOOLS, HistoryGenerator, words
from tests.osaurusd.worker.templates import REDUCED, TEMPLATES

HISTORIES = 2000
SAMPLE = 500
"""Of the histories, divided among the templates."""


@pytest.fixture(scope="module")
def chat_template(tokenizer):
    """Create the chat template of a model from its text, or from a dictionary of named texts."""

    def chat_template(source):
        inner = copy.copy(tokenizer._tokenizer)
        inner.chat_template = source
        return ChatTemplate(TokenizerWrapper(inner, type(tokenizer._detokenizer)))

    return chat_template


def check(template, seed):
    """Render a random history; raise an error if the template rejects it or loses text."""
    chat = HistoryGenerator(seed).chat()
    text = template.render(chat)
    assert [] == [word for word in words(chat) if word not in text], f"history {seed}: {chat}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_renders_legal_histories_without_losing_text(chat_template, name):
    template = chat_template(TEMPLATES[name])
    start = list(TEMPLATES).index(name)

    for seed in range(start, SAMPLE, len(TEMPLATES)):
        check(template, seed)


@pytest.mark.long
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_renders_every_history_without_losing_text(chat_template, name):
    template = chat_template(TEMPLATES[name])

    for seed in range(HISTORIES):
        check(template, seed)


# The kinds of templates. Each test has a template that rejects or loses the convention, and one that does not.

CALL_ID = "call_0123456789abcdef01234567"


def chat(*messages, tools=()):
    return ChatPrompt(messages=[*messages], tools=[*tools])


def user(text):
    return Message.from_text("user", text)


def assistant(text="", *calls, reasoning=None):
    return Message.from_text("assistant", text, tool_calls=[*calls], reasoning=reasoning)


def call(arguments='{"a": 1}', call_id=CALL_ID):
    return ToolCall(id=call_id, name="look", arguments=arguments)


def result(text, call_id=CALL_ID):
    return Message(role="tool", content=[ToolResultPart(call_id=call_id, content=[TextPart(text=text)])])


@pytest.fixture(scope="module")
def render(chat_template):
    """Render a chat with a template by its name."""
    templates = functools.cache(lambda name: chat_template(TEMPLATES[name]))
    return lambda name, *messages, tools=(): templates(name).render(chat(*messages, tools=tools))


@pytest.mark.parametrize(
    ("arguments", "items", "quoted", "text"),
    [
        ("", "look()", "look({})", "look\n```json\n{}"),
        (" \n", "look()", "look({})", "look\n```json\n{}"),
        ("null", "look()", "look({})", "look\n```json\n{}"),
        ("[]", "look()", "look({})", "look\n```json\n{}"),
        ('{"a": 1}', "look(a=1 )", 'look({"a": 1})', 'look\n```json\n{"a": 1}'),
        ("[1]", "look(arguments=[1] )", 'look("[1]")', "look\n```json\n[1]"),
        ('{"a": "cut', 'look(arguments={"a": "cut )', 'look("{\\"a\\": \\"cut")', 'look\n```json\n{"a": "cut'),
    ],
)
def test_arguments_of_any_text_are_rendered(render, arguments, items, quoted, text):
    messages = [user("Hi"), assistant("", call(arguments)), result("done")]

    assert items in render("qwen-3.5", *messages)
    assert quoted in render("chatml-tools", *messages)
    assert text in render("deepseek-r1", *messages)


def test_arguments_keep_their_text_for_a_template_that_writes_them_unquoted(render):
    assert 'look{"a": true}' in render(
        "unquoted-arguments", user("Hi"), assistant("", call('{"a": true}')), result("x")
    )


def test_call_ids_are_mapped_to_nine_characters_consistently(render):
    messages = [user("Hi"), assistant("", call()), result("done"), assistant("Bye")]

    text = render("mistral-nemo", *messages)

    (call_id,) = re.findall(r'"id": "(\w+)"', text)
    assert re.fullmatch("[a-zA-Z0-9]{9}", call_id)
    assert f'"call_id": "{call_id}"' in text
    assert text == render("mistral-nemo", *messages)
    assert CALL_ID in render("chatml-tools", *messages)


def test_call_ids_of_nine_characters_are_kept(render):
    assert '"id": "abcDEF123"' in render("mistral-nemo", user("Hi"), assistant("", call(call_id="abcDEF123")))


def test_a_user_message_after_a_result_follows_an_empty_answer_if_roles_must_alternate(render):
    messages = [user("Hi"), assistant("", call()), result("done"), user("Go on")]

    assert render("mistral-nemo", *messages).endswith("[/TOOL_RESULTS]<|im_end|>[INST]Go on[/INST]")
    assert render("ministral-3", *messages).endswith("[/TOOL_RESULTS] <|im_end|>[INST]Go on[/INST]")


def test_system_text_in_the_middle_becomes_user_text_if_it_must_be_at_the_beginning(render):
    reminder = Message.from_text("system", "Remember.")
    messages = [Message.from_text("system", "Be brief."), user("Hi"), assistant("Yes?"), reminder, user("Go on")]

    text = render("qwen-3.5", *messages)

    assert text.startswith("<system>Be brief.")
    assert "<user>Remember.\n\nGo on" in text
    assert "<system>Remember." in render("chatml-tools", *messages)


def test_a_chat_without_a_user_message_gets_an_empty_one_if_the_template_needs_it(render):
    assert re.sub(r"\n+", "", render("qwen-3.5", assistant("Hello"))) == "<user><assistant>Hello<assistant>"
    assert "<user>" not in render("chatml-tools", assistant("Hello"))


def test_an_answer_at_the_end_is_kept_if_the_template_drops_it(render):
    text = render("gigachat", user("Hi"), assistant("Hello"))

    assert text.index("<user>Hi") < text.index("<assistant>Hello") < text.rindex("<assistant>")
    assert "<user>" not in render("chatml-tools", user("Hi"), assistant("Hello")).partition("Hello")[2]


def test_templates_get_the_additional_special_tokens_of_older_versions(chat_template, tokenizer):
    template = chat_template("{{ additional_special_tokens | length }}|" + REDUCED["chatml"])

    assert template.render(chat(user("Hi"))).startswith(f"{len(tokenizer.extra_special_tokens)}|<user>Hi")


def test_an_empty_answer_gets_a_filler_if_the_template_rejects_it(render):
    assert "<assistant> \n" in render("no-empty-answers", user("Hi"), assistant(""), user("Still there?"))


@pytest.mark.parametrize("name", ["phi-4-mini", "tools-in-message", "xml-tools", "firefunction", "named"])
def test_tools_reach_templates_that_do_not_read_the_usual_argument(render, name):
    text = render(name, user("Hi"), tools=[TOOLS[0]])

    assert "zqweather" in text
    assert "zqcity" in text
    assert "You can call functions" not in text


@pytest.mark.parametrize("name", ["chatml", "gemma-3", "idefics", "llava", "named-without-default"])
def test_tools_are_explained_where_they_do_not_reach_the_prompt(render, name):
    text = render(name, user("Hi"), tools=[TOOLS[0]])

    assert "You can call functions" in text
    assert "zqcity" in text


def test_a_mention_of_tools_in_a_template_does_not_mean_that_it_renders_them(chat_template):
    template = chat_template("{# tools are not supported #}{% if tools %}{% endif %}" + REDUCED["chatml"])

    assert "You can call functions" in template.render(chat(user("Hi"), tools=[TOOLS[0]]))


def test_a_tool_whose_schema_the_template_cannot_render_gets_plain_types(render):
    text = render("hermes", user("Hi"), tools=[TOOLS[2]])

    assert "zqeither: str JSON schema:" in text
    assert "You can call functions" not in text


def test_part_lists_are_used_where_the_template_reads_only_those(render):
    assert "<user>Hi" in render("idefics", user("Hi"))
    assert "<user>Hi" in render("parts-of-users", user("Hi"))
    assert "<user>Hi" in render("llava", user("Hi"))


def test_calls_are_split_if_only_one_is_accepted(render):
    messages = [user("Hi"), assistant("", call(call_id="1"), call(call_id="2")), result("two", "2"), result("one", "1")]

    text = render("llama-3", *messages)

    assert re.findall("one|two|parameters", text) == ["parameters", "one", "parameters", "two"]


def test_text_is_separated_from_calls_if_the_template_drops_it(render):
    text = render("calls-or-text", user("Hi"), assistant("Let me look.", call()), result("done"))

    assert text.index("Let me look.") < text.index("look({") < text.index("done")


@pytest.mark.parametrize(
    "name", ["chatml-tools", "qwen3", "glm", "mistral-nemo", "gpt-oss", "llama-3", "results-in-order"]
)
def test_reasoning_text_and_calls_in_separate_messages_are_one_answer(render, name):
    calls = [call(call_id="a11111111"), call(call_id="a22222222")]
    results = [result("one", "a11111111"), result("two", "a22222222")]
    items = [assistant(reasoning="Hm."), assistant("Let me look."), assistant("", calls[0]), assistant("", calls[1])]

    text = render(name, user("Hi"), *items, *results)

    assert text == render(name, user("Hi"), assistant("Let me look.", *calls, reasoning="Hm."), *results)


def test_results_follow_their_calls_if_the_template_requires_it(render):
    calls = [call(call_id="1"), call(call_id="2")]
    messages = [
        user("Hi"),
        assistant("", *calls),
        user("Wait"),
        result("two", "2"),
        result("lost", "0"),
        assistant("Bye"),
    ]

    text = render("results-in-order", *messages)

    assert re.findall("<tool>|two|Wait|Result of 0:\nlost|Bye", text) == [
        "<tool>", "<tool>", "two", "Wait", "Result of 0:\nlost", "Bye",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glm", "<think>Hm.</think>"),
        ("gpt-oss", "<|channel|>analysis<|message|>Hm.<|end|>"),
        ("solar", "<think>Hm.</think>"),
        ("apriel", "<thinking>Hm.</thinking>"),
        ("magistral", "[THINK]Hm.[/THINK]"),
        ("ministral-3", "[THINK]Hm.[/THINK]"),
        ("qwen3", "<think>\nHm.\n</think>"),
    ],
)
@pytest.mark.parametrize("text", ["", "Let me look."])
def test_reasoning_reaches_the_template_under_the_name_that_it_uses(render, name, expected, text):
    rendered = render(name, user("Hi"), assistant(text, call(), reasoning="Hm."), result("done"))

    assert expected in rendered
    assert text in rendered


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "granite-4.0", "chatml-tools"])
def test_a_template_that_follows_the_conventions_is_used_as_it_is(name):
    def render(template_input):
        messages, tools, variables = template_input
        options = {"chat_template": TEMPLATES[name], "add_generation_prompt": True, **variables}
        return render_jinja_template([messages], tools, **options)[0][0]

    assert TemplateProfile() == find_profile(render)


def test_the_python_renderer_of_mlx_lm_renders_legal_histories(tokenizer):
    wrapper = TokenizerWrapper(tokenizer._tokenizer, chat_template=deepseek_v32.apply_chat_template)
    template = ChatTemplate(wrapper)

    for seed in range(100):
        check(template, seed)
