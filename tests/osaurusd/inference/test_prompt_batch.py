"""Several prompts are answered as one event stream."""

import asyncio
import contextlib

import pytest

from osaurusd.errors import InvalidRequest, QueueFull, WorkerCrashed
from osaurusd.inference.events import Completed, Delta, Finished, Started, Timings, Usage
from osaurusd.inference.prompt_batch import MAX_CONCURRENT, generate_all

from .builders import build_request, collect


class FakeClient:
    """Answers each request with its prompt once `proceed` is set, or fails with the error registered for it."""

    def __init__(self):
        self.proceed = asyncio.Event()
        self.errors = {}
        self.running = 0
        self.max_running = 0
        self.started = asyncio.Condition()
        self.continuations = []

    async def generate(self, request, *, continuation=False):
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        self.continuations.append(continuation)
        async with self.started:
            self.started.notify_all()
        try:
            await self.proceed.wait()
            text = request.prompt.text
            if error := self.errors.get(text):
                raise error
            yield Started(prompt_tokens=4)
            for index in range(request.n):
                yield Delta(index=index, text=text)
                yield Finished(index=index, reason="length")
            usage = Usage(prompt_tokens=4, completion_tokens=3, cached_tokens=2, reasoning_tokens=1)
            yield Completed(usage=usage, timings=Timings(queue=1.0, prefill=len(text)))
        finally:
            self.running -= 1

    async def wait_for_running(self, count):
        async with self.started:
            await self.started.wait_for(lambda: self.running == count)


@pytest.fixture
def client():
    return FakeClient()


async def test_choices_are_numbered_consecutively_and_token_counts_are_summed(client):
    client.proceed.set()
    *events, completed = await collect(generate_all(client, [build_request("a", n=2), build_request("bb", n=2)]))

    texts = {event.index: event.text for event in events if isinstance(event, Delta)}
    assert texts == {0: "a", 1: "a", 2: "bb", 3: "bb"}
    assert sorted(event.index for event in events if isinstance(event, Finished)) == [0, 1, 2, 3]
    assert [event for event in events if isinstance(event, Started)] == [Started(prompt_tokens=4)] * 2
    assert completed.usage == Usage(prompt_tokens=8, completion_tokens=6, cached_tokens=4, reasoning_tokens=2)


async def test_timings_are_those_of_the_slowest_prompt(client):
    client.proceed.set()
    completed = (await collect(generate_all(client, [build_request("a"), build_request("bbb")])))[-1]
    assert completed.timings == Timings(queue=1.0, prefill=3)


async def test_concurrency_is_limited_and_every_prompt_is_answered(client):
    generating = asyncio.create_task(collect(generate_all(client, [build_request("a")] * 50)))
    await client.wait_for_running(MAX_CONCURRENT)
    client.proceed.set()

    events = await generating
    assert client.max_running == MAX_CONCURRENT
    assert sorted(event.index for event in events if isinstance(event, Delta)) == [*range(50)]


async def test_only_the_first_request_may_be_rejected_by_a_full_queue(client):
    client.proceed.set()
    await collect(generate_all(client, [build_request("a")] * 20))

    assert client.continuations == [False, *[True] * 19]


async def test_one_failure_cancels_all_and_has_the_number_of_its_prompt(client):
    client.errors["bad"] = InvalidRequest("too long", location=("prompt",))
    prompts = [build_request(text) for text in ("a", "b", "bad", "c")]
    generating = asyncio.create_task(collect(generate_all(client, prompts)))
    await client.wait_for_running(4)
    client.proceed.set()

    with pytest.raises(InvalidRequest) as raised:
        await generating
    assert (raised.value.prompt_index, raised.value.location) == (2, ("prompt",))
    assert client.running == 0


async def test_error_object_that_requests_share_is_not_modified(client):
    client.proceed.set()
    shared = client.errors["a"] = WorkerCrashed("the worker exited")
    with pytest.raises(WorkerCrashed) as raised:
        await collect(generate_all(client, [build_request("a")] * 2))
    assert raised.value.prompt_index is not None
    assert shared.prompt_index is None


async def test_full_queue_is_reported(client):
    client.proceed.set()
    client.errors["a"] = QueueFull("full")
    with pytest.raises(QueueFull):
        await collect(generate_all(client, [build_request("a"), build_request("b")]))


async def test_cancelling_the_consumer_cancels_all(client):
    generating = asyncio.create_task(collect(generate_all(client, [build_request("a")] * 3)))
    await client.wait_for_running(3)
    generating.cancel()

    with pytest.raises(asyncio.CancelledError):
        await generating
    assert client.running == 0


async def test_closing_the_iterator_cancels_all(client):
    client.proceed.set()
    async with contextlib.aclosing(generate_all(client, [build_request("a")] * 3)) as events:
        await anext(events)
        assert client.running == 3
    assert client.running == 0
