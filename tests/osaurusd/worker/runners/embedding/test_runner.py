"""all-MiniLM-L6-v2 in the runner. The reference was computed once with sentence-transformers."""

import json
from pathlib import Path

import numpy as np
import pytest

from osaurusd.errors import ContextLengthExceeded, InvalidRequest, QueueFull
from osaurusd.inference.events import Completed
from osaurusd.rpc import messages

REFERENCE = json.loads(Path(__file__).with_name("minilm.json").read_text())
TEXTS = REFERENCE["texts"]
SPECIAL_TOKENS = [101, 102]


def test_cosines_equal_those_of_sentence_transformers(minilm):
    vectors = minilm.embed(*TEXTS)

    np.testing.assert_allclose(vectors @ vectors.T, REFERENCE["cosines"], atol=1e-5)
    np.testing.assert_allclose(vectors[:, :4], REFERENCE["vectors"], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_paraphrases_are_closer_than_unrelated_texts(minilm):
    vectors = minilm.embed("How do I reset my password?", "I forgot my login credentials.", "Cats like fish.")

    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > abs(vectors[0] @ vectors[2])


def test_padding_and_batch_size_change_nothing(minilm):
    together = minilm.embed(*TEXTS)
    alone = np.concatenate([minilm.embed(text) for text in TEXTS])

    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_requests_share_passes_and_keep_their_order(minilm):
    minilm.passes = 0
    minilm.submit(1, *TEXTS[:4])
    minilm.submit(2, *TEXTS[4:])
    events = minilm.run()
    vectors = [np.frombuffer(events[id_][0][1], dtype="<f4").reshape(4, -1) for id_ in (1, 2)]

    assert 1 == minilm.passes
    np.testing.assert_allclose(np.concatenate(vectors), minilm.embed(*TEXTS), atol=1e-6)


def test_usage_counts_real_tokens(minilm):
    minilm.submit(1, "A man is eating food.", "hi")
    *_, (completed,) = minilm.run()[1]

    assert isinstance(completed, Completed)
    assert 8 + 3 == completed.usage.prompt_tokens


def test_token_ids_equal_their_text_with_and_without_special_tokens(minilm):
    first, last = SPECIAL_TOKENS
    text, bare, complete = minilm.embed("hi", [7632], [first, 7632, last])

    np.testing.assert_allclose(text, bare, atol=1e-6)
    np.testing.assert_allclose(text, complete, atol=1e-6)


def test_unknown_token_ids_are_rejected_with_the_number_of_the_input(minilm):
    with pytest.raises(InvalidRequest, match="range from 0 to 30521, not 50256") as error:
        minilm.embed("a", [50256])
    assert ("inputs", 1) == error.value.location


def test_input_that_exceeds_the_context_is_rejected_with_both_numbers(minilm):
    with pytest.raises(ContextLengthExceeded, match="302 tokens exceed the model's context of 256") as error:
        minilm.embed("a", "word " * 300)
    assert ("inputs", 1) == error.value.location


def test_truncation_keeps_the_special_tokens_and_is_reported(minilm):
    minilm.submit(1, "a", "word " * 300, truncate=True)
    (vectors, data), (completed,) = minilm.run()[1]
    rows = np.frombuffer(data, dtype="<f4").reshape(2, -1)

    assert [1] == vectors.truncated
    assert 3 + 256 == completed.usage.prompt_tokens
    np.testing.assert_allclose(rows[1], minilm.embed("word " * 254)[0], atol=1e-6)


def test_dimensions_are_rejected_without_matryoshka_training(minilm):
    with pytest.raises(InvalidRequest, match="not trained for shorter vectors") as error:
        minilm.embed("a", dimensions=64)
    assert ("dimensions",) == error.value.location


def test_unknown_prompt_is_rejected(minilm):
    with pytest.raises(InvalidRequest, match="no prompt 'query'"):
        minilm.embed("a", prompt_name="query")


def test_cancelled_request_is_dropped(minilm):
    minilm.submit(1, *TEXTS)
    minilm.submit(2, "a")
    minilm.runner.engine.cancel(1)

    assert [2] == list(minilm.run())


def test_full_queue_rejects_requests(minilm):
    engine = minilm.runner.engine
    count = 0
    while not minilm.frames:
        count += 1
        minilm.submit(count, "a")
    (failed,) = minilm.frames
    minilm.frames.clear()
    engine.drop_all()

    assert (QueueFull.code, count) == (failed.code, failed.id)


def test_memory_limit_reduces_passes(minilm):
    engine = minilm.runner.engine
    budget = engine.queue.budget
    try:
        minilm.runner.apply_limits(messages.Limits(memory_limit_bytes=engine.weights_bytes + 20 * 2**20))
        assert 0 < engine.queue.budget < budget
        assert engine.reserved_bytes <= engine.weights_bytes + 20 * 2**20
        np.testing.assert_allclose(minilm.embed(*TEXTS)[:, :4], REFERENCE["vectors"], atol=1e-5)
    finally:
        minilm.runner.apply_limits(messages.Limits(memory_limit_bytes=2**34))
    assert budget == engine.queue.budget
