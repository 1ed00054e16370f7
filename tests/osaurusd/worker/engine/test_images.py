"""Images in the planner, and the cache of their features: no network, no arrays, no clock."""

import numpy as np
import pytest

from osaurusd.errors import RequestExceedsMemory
from osaurusd.worker.engine.chunk_sizer import IDLE_SECONDS, ChunkSizer
from osaurusd.worker.engine.images import FeatureCache, PromptImage, image_bytes, image_ids
from osaurusd.worker.engine.kv_cache import CacheLayout
from osaurusd.worker.engine.memory import MemoryBudget
from osaurusd.worker.engine.planner import ImageStages, Planner
from osaurusd.worker.engine.prefix_cache import PrefixCache
from tests.osaurusd.worker.engine.harness import build_request
from tests.osaurusd.worker.networks import tokens

LAYOUT = CacheLayout((), 10, (), 0, has_states=False, batchable=True)
STAGES = 12


class Features:
    nbytes = 100


def image(start, end, key=b"key", *, whole=False, patches=16, encoding_bytes=0):
    return PromptImage(
        key=key,
        start=start,
        end=end,
        tokens=end - start,
        whole=whole,
        stages=STAGES,
        patches=patches,
        encoding_bytes=encoding_bytes,
        feature_bytes=8 * (end - start),
        load=dict,
        release=lambda: None,
    )


def request(id_, length, *images, **options):
    prompt = tokens(length, 1000 * id_)
    for each in images:
        prompt[each.start : each.end] = image_ids(each.key, each.tokens).tolist()
    return build_request(id_, prompt, images=list(images), **options)


class Harness:
    """A planner whose vision tower takes 0.1 s for each stage of 16 patches."""

    def __init__(self, limit_bytes=None, feature_cache_bytes=10**6, has_states=False):
        self.sizer = ChunkSizer(token_seconds=0.01)
        layout = CacheLayout((), 10, (), 0, has_states=has_states, batchable=True)
        self.features = FeatureCache(feature_cache_bytes)
        self.planner = Planner(
            MemoryBudget(layout, 0, limit_bytes, 0, 0, self.sizer),
            self.sizer,
            PrefixCache(2**30, has_states=has_states),
            self.features,
            max_waiting=64,
            padding_per_pass=10**6,
        )

    def step(self):
        """Run the passes of one step; return their plans."""
        planner = self.planner
        planner.admit()
        planner.begin_prefill()
        plans = []
        while plan := planner.plan_prefill():
            plans.append(plan)
            stages = plan.encode.end - plan.encode.start if plan.encode else 0
            planner.record_prefill(plan, 0.1 * stages + 0.01 * plan.prefill_tokens)
        planner.take_started()
        planner.start_decoding()
        return plans

    def run(self):
        plans = []
        while step := self.step():
            plans += step
        return plans


def borders(plans):
    return [chunk.end for plan in plans for chunk in plan.prefill]


def test_images_are_encoded_before_the_prompt_is_processed():
    harness = Harness()
    harness.planner.submit(request(1, 40, image(2, 10), image(12, 20, b"other")))

    plans = harness.run()

    encoded = [plan.encode for plan in plans if plan.encode]
    assert {stages.image for stages in encoded} == {0, 1}
    assert sum(stages.end - stages.start for stages in encoded) == 2 * STAGES
    assert all(plan.encode for plan in plans[: len(encoded)])
    assert borders(plans) == [40]


def test_stages_of_a_step_take_as_long_as_other_passes():
    harness = Harness()
    harness.planner.submit(request(1, 40, image(2, 10)))

    first, *later = (plan.encode for plan in harness.run() if plan.encode)

    # Until the first stage has been measured, one at a time is computed.
    assert first == ImageStages((1, 0), 0, 0, 1)
    assert all(stages.end - stages.start <= IDLE_SECONDS / 0.1 for stages in later)
    assert max(stages.end - stages.start for stages in later) > 1


def test_running_sequences_are_not_delayed_by_a_whole_image():
    harness = Harness()
    harness.planner.submit(request(1, 20))
    harness.run()
    harness.sizer.step_seconds = 0.01
    harness.planner.submit(request(2, 40, image(2, 10, patches=64)))

    steps = [step for step in (harness.step() for _ in range(STAGES + 3)) if step]

    per_step = [sum(plan.encode.end - plan.encode.start for plan in step if plan.encode) for step in steps]
    assert sum(per_step) == STAGES
    assert max(per_step) <= 6


def test_short_prompts_overtake_images():
    harness = Harness()
    harness.planner.submit(request(1, 40, image(2, 10, patches=4096)))
    harness.planner.submit(request(2, 20))

    assert harness.step()[0].prefill[0].prompt == (2, 0)


def test_cached_features_are_taken_at_once():
    harness = Harness()
    harness.features.insert(b"key", Features())
    harness.planner.submit(request(1, 40, image(2, 10)))

    assert [plan.encode for plan in harness.run() if plan.encode] == [ImageStages((1, 0), 0, 0, STAGES)]


@pytest.mark.parametrize("start", range(1, 40, 3))
@pytest.mark.parametrize("budget", [1, 5, 64])
@pytest.mark.parametrize("has_states", [False, True])
def test_borders_never_cut_a_whole_image(monkeypatch, start, budget, has_states):
    harness = Harness(has_states=has_states)
    monkeypatch.setattr(harness.sizer, "tokens", lambda *, shared: budget)
    whole = image(start, start + 20, whole=True)
    harness.planner.submit(request(1, 100, whole))

    plans = harness.run()

    assert borders(plans)[-1] == 100
    assert not [border for border in borders(plans) if whole.start < border < whole.end]


def test_prompts_with_images_do_not_share_a_pass():
    harness = Harness()
    for id_ in (1, 2):
        harness.planner.submit(request(id_, 40, image(2, 10, bytes([id_]))))

    assert all(len(plan.prefill) == 1 for plan in harness.run() if plan.prefill)


def test_images_count_in_the_memory_of_waiting_requests():
    harness = Harness(limit_bytes=20_000)
    harness.planner.submit(request(1, 40, image(2, 10, b"1", encoding_bytes=6000)))
    harness.planner.admit()
    reserved = harness.planner.reserved_bytes
    harness.planner.submit(request(2, 40, image(2, 10, b"2", encoding_bytes=15_000)))
    harness.planner.admit()

    assert harness.planner.reserved_bytes == reserved > 6000
    harness.planner.cancel(1)
    harness.planner.admit()
    assert harness.planner.reserved_bytes > 15_000


def test_image_that_exceeds_the_memory_is_rejected():
    harness = Harness(limit_bytes=20_000)

    with pytest.raises(RequestExceedsMemory):
        harness.planner.submit(request(1, 40, image(2, 10, encoding_bytes=30_000)))


def test_one_image_is_encoded_at_a_time():
    images = [image(0, 10, encoding_bytes=1000), image(10, 20, encoding_bytes=3000)]
    assert image_bytes(images) == 3000 + 2 * 80
    assert image_bytes([]) == 0


def test_ids_of_images_are_negative_and_differ():
    first, second = (image_ids(key, 1000) for key in (b"1", b"2"))

    assert first.max() < 0
    assert first.dtype == np.int32
    assert (first == image_ids(b"1", 1000)).all()
    assert len({*first.tolist(), *second.tolist()}) > 1990


def test_least_recently_used_features_are_evicted():
    cache = FeatureCache(300)
    for key in (b"1", b"2", b"3"):
        cache.insert(key, Features())
    cache.find(b"1")
    cache.insert(b"4", Features())

    assert [key in cache for key in (b"1", b"2", b"3", b"4")] == [True, False, True, True]
    assert cache.nbytes == 300
    cache.set_cap(100)
    assert b"4" in cache
    assert cache.nbytes == 100


def test_features_larger_than_the_cache_are_not_stored():
    cache = FeatureCache(50)
    cache.insert(b"1", Features())
    assert cache.find(b"1") is None
    assert not cache.nbytes
