"""Chats with images yield what mlx_vlm itself generates, however the engine divides, batches and reuses the work."""

import functools

import pytest

from tests.osaurusd.worker.networks import select
from tests.osaurusd.worker.runners.vision.conftest import OUTPUT_TOKENS, ask, draw
from tests.osaurusd.worker.runners.vision.reference import Reference
from tests.osaurusd.worker.runners.vision.tiny_models import RECIPES

FIRST, SECOND, THIRD = draw(1), draw(2, 100, 50), draw(3, 64, 64)
TAIL = " Describe in detail what both of them have in common, and name the colours of the largest blocks, please."

HEAD = "You are an assistant that describes drawings in a few words. " * 6

ONE = ask((HEAD, FIRST, TAIL))
SEVERAL = ask((HEAD, FIRST, "Compare with ", SECOND, TAIL), "They differ.", ("And ", THIRD, "?" + TAIL))
TEXT = ask("What is the capital of France?" + TAIL)


@pytest.fixture(scope="module")
def reference(vision_folder):
    return functools.cache(lambda family: Reference(vision_folder(family), family))


@pytest.mark.parametrize("family", select(RECIPES, "idefics3", "gemma3", "qwen3_vl"))
@pytest.mark.parametrize(
    "chat",
    [pytest.param(ONE, marks=pytest.mark.long), SEVERAL, pytest.param(TEXT, marks=pytest.mark.long)],
    ids=["one image", "several images", "no image"],
)
def test_output_is_that_of_mlx_vlm(runner, family, reference, chat):
    assert runner.fresh(chat) == [reference(family).generate(chat, OUTPUT_TOKENS)]


def test_output_depends_on_the_image(runner):
    outputs = runner.fresh(*(ask((HEAD, draw(seed), TAIL)) for seed in range(4)))
    assert len({tuple(output) for output in outputs}) == len(outputs)


@pytest.fixture
def set_chunks(monkeypatch):
    """Fixes the number of prompt tokens, and of stages of the vision tower, that a step processes."""

    def set_chunks(runner, tokens, stages=2**16):
        monkeypatch.setattr(runner.engine.chunk_sizer, "tokens", lambda *, shared: tokens)
        monkeypatch.setattr(runner.engine.chunk_sizer, "image_stages", lambda patches, *, shared: stages)

    return set_chunks


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.long), 7])
def test_output_does_not_depend_on_chunk_borders(runner, set_chunks, size):
    expected = runner.fresh(SEVERAL)
    set_chunks(runner, size, stages=1)
    assert runner.fresh(SEVERAL) == expected


def test_second_question_about_an_image_processes_only_the_question(runner):
    question = ask((HEAD, FIRST, "Is it a cat or a dog?" + TAIL))
    (expected,) = runner.fresh(question)
    (first,) = runner.run(ONE)
    (second,) = runner.run(question)
    assert second.tokens == expected
    assert first.request.images[0].end <= second.cached_tokens < len(second.request.prompt_tokens)


def test_image_added_to_a_chat_keeps_what_precedes_it(runner):
    extended = ask(*(content for _, content in ONE[0]), "A square.", ("And this?", SECOND, TAIL))
    (expected,) = runner.fresh(extended)
    runner.run(ONE)
    (second,) = runner.run(extended)
    assert second.tokens == expected
    assert second.cached_tokens >= second.request.images[0].end


def test_prompts_with_other_images_share_nothing_beyond_the_text_before_them(runner):
    other = ask((HEAD, SECOND, TAIL))
    (expected,) = runner.fresh(other)
    runner.run(ONE)
    (second,) = runner.run(other)
    assert second.tokens == expected
    assert second.cached_tokens <= second.request.images[0].start


def test_chats_with_and_without_images_are_batched(runner):
    chats = [ONE, TEXT, SEVERAL, ask((THIRD, SECOND, TAIL)), ask((HEAD, FIRST, "Where is it?" + TAIL))]
    expected = runner.fresh(*chats)
    assert [result.tokens for result in runner.run(*chats)] == expected


def test_several_choices_share_an_image(runner):
    (expected,) = runner.fresh(ONE)
    (result,) = runner.run(ONE, n=2)
    assert [choice.output_tokens for choice in result.request.choices] == [expected, expected]
