"""A prompt can end within an answer of the assistant, which the output then continues."""

from pathlib import Path

import msgspec
import pytest

from osaurusd.errors import ContextLengthExceeded, InvalidRequest
from osaurusd.inference.request import ChatPrompt, GenerationRequest, Message, SamplingParams
from osaurusd.worker.frontend.output_parser import OutputParser
from osaurusd.worker.frontend.prompt_encoder import PromptEncoder
from tests.osaurusd.worker import families, templates

COMPLETE = sorted((Path(__file__).parents[1] / "chat_templates").glob("*.jinja"))
HISTORY = [("user", "Write a haiku."), ("assistant", "Gladly."), ("user", "Begin with snow.")]
TRIMMING = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}<assistant>"
WITHOUT_ANSWERS = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"


def chat(answer, *, history=HISTORY):
    messages = [Message.from_text(role, text) for role, text in (*history, ("assistant", answer))]
    return ChatPrompt(messages=messages, continues_answer=True)


def encode(tokenizer, prompt, **options):
    return PromptEncoder(tokenizer, None, **options).encode(prompt)


@pytest.mark.parametrize("template", [*templates.REDUCED.values()], ids=[*templates.REDUCED])
def test_prompt_ends_with_the_answer(with_template, template):
    tokenizer = with_template(template)
    encoder = PromptEncoder(tokenizer, None)
    for answer in ("Snow falls on ", "Snow\n", "S"):
        text = tokenizer.decode(encoder.encode(chat(answer)).tokens)
        assert text.endswith(answer)
        assert "Begin with snow." in text


@pytest.mark.parametrize("path", COMPLETE, ids=[path.stem for path in COMPLETE])
def test_answer_is_continued_with_complete_templates(with_template, path):
    tokenizer = with_template(path.read_text())
    assert tokenizer.decode(encode(tokenizer, chat("Snow falls on ")).tokens).endswith("Snow falls on ")


def test_prompt_is_that_of_the_turn_up_to_the_answer(tokenizer):
    turn = ChatPrompt(messages=[Message.from_text(role, text) for role, text in HISTORY])
    expected = tokenizer.decode(encode(tokenizer, turn).tokens) + "Snow falls on"
    prompt = encode(tokenizer, chat("Snow falls on"))
    assert tokenizer.decode(prompt.tokens) == expected
    assert prompt.continues_answer


def test_spaces_at_the_end_are_kept_by_templates_that_remove_them(with_template):
    tokenizer = with_template(TRIMMING)
    assert tokenizer.decode(encode(tokenizer, chat("Snow  ")).tokens).endswith("<assistant>Snow  ")


def test_empty_answer_is_a_new_one(tokenizer):
    turn = ChatPrompt(messages=[Message.from_text(role, text) for role, text in HISTORY])
    assert encode(tokenizer, chat("")).tokens == encode(tokenizer, turn).tokens


def test_last_line_is_continued_without_a_template(with_template):
    tokenizer = with_template(None)
    text = tokenizer.decode(encode(tokenizer, chat("Snow")).tokens)
    assert text.endswith("user: Begin with snow.\nassistant: Snow")


def test_template_that_leaves_out_the_answer_is_named(with_template):
    tokenizer = with_template(WITHOUT_ANSWERS)
    with pytest.raises(InvalidRequest, match="cannot be continued") as caught:
        encode(tokenizer, chat("Snow"))
    assert caught.value.location == ("prompt", "messages")


def test_answer_counts_against_the_context(tokenizer):
    with pytest.raises(ContextLengthExceeded):
        PromptEncoder(tokenizer, 64).encode(chat("word " * 1000))


def test_answer_can_begin_with_reasoning(tiny_folder, tmp_path):
    tokenizer = families.tokenizer_factory(tiny_folder, tmp_path)("qwen3")
    assert encode(tokenizer, chat("<think>\n")).starts_reasoning
    assert not encode(tokenizer, chat("<think>\nHm.\n</think>\n")).starts_reasoning


def test_space_between_answer_and_output_is_kept(tokenizer):
    request = GenerationRequest(prompt=chat("Snow falls"), sampling=SamplingParams(temperature=0))
    new = msgspec.structs.replace(request, prompt=msgspec.structs.replace(request.prompt, continues_answer=False))
    texts = []
    for each in (request, new):
        output = OutputParser(tokenizer).create_output(each, encode(tokenizer, each.prompt))
        deltas = [output.add(token) for token in tokenizer.encode(" on", add_special_tokens=False)]
        deltas.append(output.finish(truncated=False))
        texts.append("".join(delta.text for delta in deltas if delta))
    assert texts == [" on", "on"]
