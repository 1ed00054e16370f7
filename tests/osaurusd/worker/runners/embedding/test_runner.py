"""The runner with a tiny random BERT. `tests/integration/test_embeddings.py` checks vectors of a real model."""

import numpy as np
import pytest

from osaurusd.errors import ContextLengthExceeded, InvalidRequest, QueueFull
from osaurusd.inference.events import Completed
from osaurusd.rpc import messages

TEXTS = ["A man is eating.", "hi", "How do I reset my password, and what else?", "Die Hauptstadt.", "one two three"]
SPECIAL_TOKENS = [101, 102]


def test_padding_and_batch_size_change_nothing(tiny):
    together = tiny.embed(*TEXTS)
    alone = np.concatenate([tiny.embed(text) for text in TEXTS])

    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_requests_share_passes_and_keep_their_order(tiny):
    tiny.passes = 0
    tiny.submit(1, *TEXTS[:2])
    tiny.submit(2, TEXTS[2])
    tiny.submit(3, *TEXTS[3:])
    events = tiny.run()
    vectors = [np.frombuffer(events[id_][0][1], dtype="<f4").reshape(-1, 32) for id_ in (1, 2, 3)]

    assert 2 == tiny.passes  # the second one has the input that is longer than those of the first turn
    np.testing.assert_allclose(np.concatenate(vectors), tiny.embed(*TEXTS), atol=1e-6)


def test_usage_counts_real_tokens(tiny):
    tiny.submit(1, "A man is eating food.", "hi")
    *_, (completed,) = tiny.run()[1]

    assert isinstance(completed, Completed)
    assert 8 + 3 == completed.usage.prompt_tokens


def test_token_ids_equal_their_text_with_and_without_special_tokens(tiny):
    first, last = SPECIAL_TOKENS
    text, bare, complete = tiny.embed("hi", [7632], [first, 7632, last])

    np.testing.assert_allclose(text, bare, atol=1e-6)
    np.testing.assert_allclose(text, complete, atol=1e-6)


def test_unknown_token_ids_are_rejected_with_the_number_of_the_input(tiny):
    with pytest.raises(InvalidRequest, match="range from 0 to 30521, not 50256") as error:
        tiny.embed("a", [50256])
    assert ("inputs", 1) == error.value.location


def test_input_that_exceeds_the_context_is_rejected_with_both_numbers(tiny):
    with pytest.raises(ContextLengthExceeded, match="302 tokens exceed the model's context of 256") as error:
        tiny.embed("a", "word " * 300)
    assert ("inputs", 1) == error.value.location


def test_truncation_keeps_the_special_tokens_and_is_reported(tiny):
    tiny.submit(1, "a", "word " * 300, truncate=True)
    (vectors, data), (completed,) = tiny.run()[1]
    rows = np.frombuffer(data, dtype="<f4").reshape(2, -1)

    assert [1] == vectors.truncated
    assert 3 + 256 == completed.usage.prompt_tokens
    np.testing.assert_allclose(rows[1], tiny.embed("word " * 254)[0], atol=1e-6)


def test_dimensions_are_rejected_without_matryoshka_training(tiny):
    with pytest.raises(InvalidRequest, match="not trained for shorter vectors") as error:
        tiny.embed("a", dimensions=64)
    assert ("dimensions",) == error.value.location


def test_unknown_prompt_is_rejected(tiny):
    with pytest.raises(InvalidRequest, match='no prompt "query"'):
        tiny.embed("a", prompt_name="query")


def test_cancelled_request_is_dropped(tiny):
    tiny.submit(1, *TEXTS)
    tiny.submit(2, "a")
    tiny.runner.engine.cancel(1)

    assert [2] == list(tiny.run())


def test_full_queue_rejects_requests(tiny):
    engine = tiny.runner.engine
    count = 0
    while not tiny.frames:
        count += 1
        tiny.submit(count, "a")
    (failed,) = tiny.frames
    tiny.frames.clear()
    engine.drop_all()

    assert (QueueFull.code, count) == (failed.code, failed.id)


def test_memory_limit_reduces_passes(tiny):
    engine = tiny.runner.engine
    budget, expected = engine.queue.budget, tiny.embed(*TEXTS)
    try:
        tiny.runner.apply_limits(messages.Limits(memory_limit_bytes=engine.weights_bytes + 2 * 2**20))
        assert 0 < engine.queue.budget < budget
        assert engine.reserved_bytes <= engine.weights_bytes + 2 * 2**20
        np.testing.assert_allclose(tiny.embed(*TEXTS), expected, atol=1e-6)
    finally:
        tiny.runner.apply_limits(messages.Limits(memory_limit_bytes=2**34))
    assert budget == engine.queue.budget
