"""How a runner processes images: what it computes once only, what it rejects, and what failures affect."""

import gc
from typing import Any, cast

import mlx.core as mx
import pytest
from PIL import Image
from tokenizers import Tokenizer

from osaurusd.errors import ContextLengthExceeded, InvalidRequest, QueueFull
from osaurusd.worker.runners.vision.processor import InputBudget
from tests.osaurusd.worker.networks import select
from tests.osaurusd.worker.runners.vision.conftest import TinyRunner, ask, build_frame, draw
from tests.osaurusd.worker.runners.vision.tiny_models import RECIPES

QUESTION = "What is it? " * 10
FAMILY = "smolvlm"

# These families keep the shape of an image, and the tiny models allow few patches.
TOO_ELONGATED = {("pixtral", (200, 3)), ("mistral3", (200, 3)), ("lfm2_vl", (1, 60)), ("lfm2_vl", (200, 3))}


@pytest.fixture
def runner(get_runner):
    runner = get_runner(FAMILY)
    runner.engine.drop_caches()
    return runner


@pytest.fixture
def encoded(monkeypatch):
    """Returns a list of the images that a runner's vision tower encodes."""

    def record(runner):
        images = []
        begin = runner.network.begin_encoding
        monkeypatch.setattr(runner.network, "begin_encoding", lambda image: images.append(image) or begin(image))
        return images

    return record


def test_image_of_an_unrelated_prompt_is_not_encoded_again(runner, encoded):
    images = encoded(runner)
    chats = [ask((f"Prompt {number}", draw(1), QUESTION)) for number in range(3)]
    outputs = [runner.run(chat)[0].tokens for chat in chats]

    assert len(images) == 1
    assert outputs == runner.fresh(*chats)


def test_image_is_encoded_again_after_its_features_are_evicted(vision_folder, encoded):
    (image,) = TinyRunner(vision_folder(FAMILY)).prepare(ask((draw(1), QUESTION))).images
    runner = TinyRunner(vision_folder(FAMILY), feature_cache_bytes=image.feature_bytes, prefix_cache_bytes=0)
    chat, other = (ask((draw(seed), QUESTION)) for seed in (1, 2))
    expected = runner.run(chat)[0].tokens
    images = encoded(runner)
    runner.run(other)

    assert runner.run(chat)[0].tokens == expected
    assert len(images) == 2
    assert runner.engine.features.nbytes == image.feature_bytes


def test_simultaneous_requests_encode_a_shared_image_once(runner, encoded):
    images = encoded(runner)
    chats = [ask((draw(1), f"Question {number}? {QUESTION}")) for number in range(3)]
    results = runner.run(*chats)

    assert len(images) == 1
    assert [result.tokens for result in results] == runner.fresh(*chats)


def test_low_detail_has_fewer_tokens_and_features_of_its_own(runner):
    high, low = (runner.prepare(ask((draw(1), QUESTION), detail=detail)) for detail in ("high", "low"))

    assert low.images[0].tokens < high.images[0].tokens
    assert low.images[0].key != high.images[0].key
    assert runner.prepare(ask((draw(1), QUESTION))).images[0].key == high.images[0].key


@pytest.mark.parametrize(
    "size",
    [(1, 1), pytest.param((33, 65), marks=pytest.mark.long), (1, 60), pytest.param((200, 3), marks=pytest.mark.long)],
    ids=str,
)
@pytest.mark.parametrize("family", select(RECIPES, "idefics3", "gemma3", "qwen3_vl"))
def test_image_of_any_size_is_processed_or_a_client_error(get_runner, family, size):
    runner = get_runner(family)
    chat = ask((draw(1, *size), QUESTION))
    if (family, size) in TOO_ELONGATED:
        with pytest.raises(InvalidRequest, match=f"{size[0]} x {size[1]} pixels"):
            runner.run(chat)
    else:
        (result,) = runner.run(chat)
        assert result.failure is None
        assert result.tokens


def test_failure_of_the_vision_tower_affects_its_request_only(runner, monkeypatch):
    bad = runner.prepare(ask((draw(7), QUESTION))).images[0].key
    begin = runner.network.begin_encoding

    def fail(image):
        if image.key == bad:
            raise ValueError("no such patch")
        return begin(image)

    monkeypatch.setattr(runner.network, "begin_encoding", fail)
    failed, served = runner.run(ask((draw(7), QUESTION)), ask((draw(8), QUESTION)))

    assert "no such patch" in failed.failure
    assert served.failure is None
    assert served.tokens


def test_request_can_be_cancelled_while_its_image_is_encoded(runner, monkeypatch):
    monkeypatch.setattr(runner.engine.chunk_sizer, "image_stages", lambda patches, *, shared: 1)
    monkeypatch.setattr(runner.engine.chunk_sizer, "tokens", lambda *, shared: 1)
    runner.engine.add(runner.prepare(ask((draw(1), QUESTION)), 1))
    runner.engine.prefill()
    runner.engine.cancel(1)

    assert not runner.engine.busy
    assert runner.run(ask((draw(1), QUESTION)))[0].tokens


def test_placeholders_in_text_are_not_images(runner):
    plain = runner.prepare(ask(("<image>", QUESTION)))
    both = runner.prepare(ask(("What does <image> mean?", draw(1), "<image><image>")))

    assert not plain.images
    assert len(both.images) == 1
    assert sum(token < 0 for token in both.prompt_tokens) == both.images[0].tokens


@pytest.mark.parametrize("image", [(), (draw(1),)], ids=["without image", "with image"])
@pytest.mark.parametrize("text", [("<image>",), ("<ima", "ge>"), ("<i", "m", "age>", "<ima", "ge>")], ids=str)
@pytest.mark.parametrize("family", [FAMILY, "gemma3", "qwen2_vl"])
def test_typed_placeholder_is_text_however_it_is_divided(get_runner, family, text, image):
    runner = get_runner(family)
    recipe = RECIPES[family]
    image_token = Tokenizer.from_file(str(runner.folder / "tokenizer.json")).token_to_id(recipe.token)
    for literal in (recipe.placeholder, recipe.token):
        parts = [part.replace("<ima", literal[:5]).replace("ge>", literal[5:]) for part in text]
        prepared = runner.prepare(ask((*parts, *image, QUESTION)))

        assert len(prepared.images) == len(image)
        assert image_token not in list(prepared.prompt_tokens)


def test_context_error_counts_the_tokens_of_images(vision_folder):
    runner = TinyRunner(vision_folder(FAMILY), context_length=64)
    with pytest.raises(ContextLengthExceeded, match=r"of them for images\)"):
        runner.prepare(ask((draw(1, 10, 40), draw(2, 10, 40), draw(3, 10, 40))))


def test_file_that_is_no_image_is_rejected_with_its_position(runner):
    frame, blobs = build_frame(1, ask((draw(1), draw(2), QUESTION)))

    with pytest.raises(InvalidRequest) as caught:
        runner.runner.prepare(frame, [blobs[0], b"GIF89a" + bytes(20)])
    assert caught.value.location == ("images", 1)


def test_image_that_the_processor_rejects_is_a_client_error(runner, monkeypatch):
    monkeypatch.setattr(runner.runner._processor, "process", lambda *_: 1 / 0)

    with pytest.raises(InvalidRequest, match="40 x 30 pixels: division by zero") as caught:
        runner.prepare(ask((draw(1), QUESTION)))
    assert caught.value.location == ("images", 0)


def test_grey_image_is_accepted(runner):
    assert runner.run(ask((Image.new("L", (20, 20), 127), QUESTION)))[0].tokens


def test_text_is_decoded_between_the_stages_of_an_image(runner, monkeypatch):
    monkeypatch.setattr(runner.engine.chunk_sizer, "image_stages", lambda patches, *, shared: 1)
    monkeypatch.setattr(runner.engine.chunk_sizer, "tokens", lambda *, shared: 1)
    text = runner.prepare(ask(QUESTION), 1)
    text.max_tokens = 40
    runner.engine.add(text)
    while not text.choices[0].output_tokens:
        runner.engine.prefill()
        runner.engine.decode()
    image = runner.prepare(ask((draw(1), QUESTION)), 2)
    runner.engine.add(image)
    before = len(text.choices[0].output_tokens)
    while image.images[0].key not in runner.engine.features:
        runner.engine.prefill()
        runner.engine.decode()

    assert len(text.choices[0].output_tokens) - before >= image.images[0].stages
    while runner.engine.busy:
        runner.engine.prefill()
        runner.engine.decode()


@pytest.mark.parametrize("family", select(RECIPES, "idefics3", "gemma3", "qwen3_vl"))
def test_memory_of_the_vision_tower_is_estimated(get_runner, family):
    runner = get_runner(family)
    (image,) = runner.prepare(ask((draw(1, 200, 200), QUESTION))).images

    def measure():
        mx.synchronize()
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        for result in runner.network.begin_encoding(image):
            mx.eval(result)
        return mx.get_peak_memory() - before - image.feature_bytes

    # MLX frees buffers in other threads, so that a busy machine may have more of them at once.
    needed = min(measure() for _ in range(5))

    assert 0.8 * needed <= image.encoding_bytes <= 4 * needed


def test_inputs_are_kept_until_the_image_is_encoded(vision_folder):
    runner = TinyRunner(vision_folder(FAMILY), feature_cache_bytes=0, prefix_cache_bytes=0)
    budget = InputBudget(100_000)
    cast(Any, runner.runner)._builder._budget = budget
    chat = ask((draw(1), QUESTION))
    waiting = runner.prepare(chat, 1)

    with pytest.raises(QueueFull):
        runner.prepare(chat, 2)
    waiting.images[0].load()
    again = runner.prepare(chat, 2)
    # An image that is encoded once more is processed again.
    assert (waiting.images[0].load()["pixel_values"] == again.images[0].load()["pixel_values"]).all()
    del waiting, again
    gc.collect()
    (result,) = runner.run(chat)
    budget.reserve(budget.max_bytes)  # although the request still exists
    budget.release(budget.max_bytes)
    assert result.request.images
    for _ in range(3):
        assert runner.run(chat)[0].tokens


def test_images_that_exceed_the_memory_of_all_are_a_client_error(vision_folder):
    runner = TinyRunner(vision_folder(FAMILY))
    cast(Any, runner.runner)._builder._budget = InputBudget(100_000)

    with pytest.raises(InvalidRequest, match="more than 100000 bytes"):
        runner.prepare(ask((draw(1), draw(2), QUESTION)))
