"""Groups of worker processes: what they generate is what one process generates."""

import shutil

import pytest
import pytest_asyncio

from osaurusd.inference.events import CandidateScores, Delta
from osaurusd.inference.request import (
    Continuation,
    GenerationRequest,
    JsonObject,
    SamplingParams,
    ScoringRequest,
    TextPrompt,
    TokenPrompt,
)
from osaurusd.rpc import messages
from osaurusd.worker.runners.text import TextRunner
from tests.osaurusd.worker.engine.harness import events_of, run
from tests.osaurusd.worker.parallel import groups
from tests.osaurusd.worker.parallel.groups import as_frame, text

pytestmark = pytest.mark.asyncio(loop_scope="module")

CACHE_BYTES = 10**7
GREEDY = SamplingParams(temperature=0)
RANDOM = SamplingParams(temperature=1.0, top_p=0.9, seed=11, frequency_penalty=0.3)


class Alone:
    """One process with the whole model, for comparison."""

    def __init__(self, folder):
        frame = messages.Load(path=str(folder), context_length=2048, prefix_cache_bytes=CACHE_BYTES)
        self.runner = TextRunner.load(frame, lambda _: None)

    def results(self, requests):
        """Return the events of each request."""
        prepared = [self.runner.prepare(as_frame(id_, request)) for id_, request in enumerate(requests)]
        frames = run(self.runner.engine, *prepared)
        return [events_of(frames, id_) for id_ in range(len(requests))]


def prompt(length, start=0):
    return TokenPrompt(tokens=[(7 * at + at * at + 31 * start) % 4000 + 10 for at in range(length)])


def generation(length, start=0, *, sampling=GREEDY, max_tokens=6, **options):
    return GenerationRequest(prompt=prompt(length, start), sampling=sampling, max_tokens=max_tokens, **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[2, pytest.param(3, marks=pytest.mark.long)])
async def tensor(request, llama_folder):
    async with groups.running(llama_folder, "tensor", request.param, prefix_cache_bytes=CACHE_BYTES) as group:
        yield group


@pytest.fixture(scope="module")
def pipeline_folders(qwen2_folder, tmp_path_factory):
    """The folders of two ranks, each of which lacks the layers of the other."""
    folders = [tmp_path_factory.mktemp("ranks") / str(rank) for rank in range(2)]
    for folder, layers in zip(folders, ([0, 1, 2], [3]), strict=True):
        shutil.copytree(qwen2_folder, folder)
        for layer in layers:
            (folder / f"model-{layer}.safetensors").unlink()
    return folders


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pipeline(pipeline_folders):
    async with groups.running(pipeline_folders, "pipeline", 2, layers=(1, 3), prefix_cache_bytes=CACHE_BYTES) as group:
        yield group


@pytest.fixture(scope="module")
def alone(llama_folder):
    return Alone(llama_folder)


@pytest.mark.long
async def test_a_batch_of_20_prompts_has_the_output_of_one_process(tensor, alone):
    requests = [generation(5 + 3 * number, number) for number in range(20)]
    assert list(map(text, await tensor.results(requests))) == list(map(text, alone.results(requests)))


async def test_a_pipeline_has_the_output_of_one_process(pipeline, qwen2_folder):
    requests = [generation(5 + 3 * number, number) for number in range(20)]
    expected = Alone(qwen2_folder).results(requests)
    assert list(map(text, await pipeline.results(requests))) == list(map(text, expected))


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(generation(9, sampling=RANDOM), id="seeded sampling"),
        pytest.param(generation(9, sampling=RANDOM, n=3), id="choices"),
        pytest.param(generation(12, constraint=JsonObject(), max_tokens=12), id="constraint"),
        pytest.param(generation(9, logprobs=2), id="logprobs"),
        pytest.param(generation(70, echo=True, logprobs=1, max_tokens=2), id="echo"),
    ],
)
async def test_every_kind_of_request_has_the_output_of_one_process(tensor, alone, request_):
    (actual,), (expected,) = await tensor.results([request_]), alone.results([request_])
    assert text(actual) == text(expected)
    assert logprobs(actual) == pytest.approx(logprobs(expected), abs=1e-3)


async def test_scores_are_those_of_one_process(tensor, alone):
    request = ScoringRequest(
        prompt=TextPrompt(text="The sky is"),
        continuations=[Continuation(text=text, candidates=["A", "B"]) for text in (" blue", " green")],
    )
    (actual,), (expected,) = await tensor.results([request]), alone.results([request])
    assert scores(actual) == [pytest.approx(values, abs=1e-3) for values in scores(expected)]


async def test_a_prefix_is_computed_once_on_every_rank_with_a_part_of_each_layer(tensor):
    await check_prefix(tensor)


async def test_a_prefix_is_computed_once_on_every_rank_with_whole_layers(pipeline):
    await check_prefix(pipeline)


async def check_prefix(group):
    first, again = generation(600, 3), generation(600, 3)
    (expected,), (actual,) = await group.results([first]), await group.results([again])
    assert text(expected) == text(actual)
    assert actual[-1].usage.cached_tokens == 599


@pytest.mark.long
async def test_a_cancelled_request_leaves_the_others_alone(tensor, alone):
    long = tensor.submit(generation(20, 5, max_tokens=1500))
    request = generation(30, 6, max_tokens=12)
    other = tensor.submit(request)
    await tensor.result(other)
    tensor.leader.send(messages.Cancel(id=long))
    (after,) = await tensor.results([request])
    (expected,) = alone.results([request])
    assert text(expected) == text(tensor.events[other]) == text(after)
    await tensor.executed(tensor.sent)


@pytest.mark.long
async def test_every_rank_evicts_what_rank_0_evicts(tensor):
    await tensor.results([generation(600, 8)])
    await tensor.executed(tensor.sent)
    assert all(rank.stats.prefix_cache_bytes > 100_000 for rank in tensor.ranks)
    tensor.leader.send(messages.DropCaches())
    await tensor.results([generation(5, 9)])
    await tensor.executed(tensor.sent)
    assert all(rank.stats.prefix_cache_bytes < 10_000 for rank in tensor.ranks)


def logprobs(events):
    return [token.logprob for event in events if isinstance(event, Delta) for token in event.logprobs or []]


def scores(events):
    return next(event.logprobs for event in events if isinstance(event, CandidateScores))
