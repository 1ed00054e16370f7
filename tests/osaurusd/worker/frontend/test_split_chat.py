"""Rendering a chat so that text can be added to its last message, and the answer begins without reasoning."""

import pytest

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import ChatPrompt, Message
from osaurusd.worker.frontend.chat_template import ChatTemplate
from tests.osaurusd.worker import families

CHAT = ChatPrompt(
    messages=[Message.from_text("system", "Be brief."), Message.from_text("user", "Sky?")],
    template_variables={"enable_thinking": False},
)


@pytest.fixture(scope="module")
def family(tiny_folder, tmp_path_factory):
    return families.tokenizer_factory(tiny_folder, tmp_path_factory.mktemp("families"))


def test_the_parts_are_the_rendered_chat(tokenizer):
    before, after, _ = ChatTemplate(tokenizer).split(CHAT)
    assert before.endswith("<|im_start|>user\nSky?")
    assert after == "<|im_end|>\n<|im_start|>assistant\n"


def test_a_last_message_without_text_can_be_continued(tokenizer):
    before, _, _ = ChatTemplate(tokenizer).split(ChatPrompt(messages=[Message(role="user")]))
    assert before.endswith("<|im_start|>user\n")


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("deepseek-r1", "<assistant><think>\n\n</think>\n\n"),
    ],
)
def test_the_answer_begins_after_the_reasoning(family, name, ending):
    assert ChatTemplate(family(name)).split(CHAT).after.endswith(ending)


def test_the_answer_begins_in_the_final_channel(with_template):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}<|start|>assistant"
    after = ChatTemplate(with_template(template)).split(CHAT).after
    assert after == "<|start|>assistant<|channel|>final<|message|>"


def test_a_chat_without_a_template_is_plain_text(with_template):
    chat = ChatPrompt(messages=[Message.from_text("user", "Sky?")])
    assert ChatTemplate(with_template(None)).split(chat) == ("user: Sky?", "\nassistant:", " ")


@pytest.mark.parametrize("content", ["", "{{ message.content }}{{ message.content }}"])
def test_a_template_that_does_not_render_the_last_message_once_is_reported(with_template, content):
    template = f"{{% for message in messages %}}{{{{ message.role }}}}{content}{{% endfor %}}"
    with pytest.raises(InvalidRequest) as failure:
        ChatTemplate(with_template(template)).split(CHAT)
    assert failure.value.location == ("prompt", "messages", 1)
