"""Requests are recorded from their arrival to their end, however they end, and only the last ones are kept."""

import asyncio
import contextlib

import pytest

from osaurusd.activity import MAX_FINISHED, Activity, RequestState, set_origin
from osaurusd.errors import QueueFull


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def activity():
    return Activity(clock=Clock())


def test_http_request_and_its_model_are_one_entry(activity):
    set_origin("openai", "/chat/completions")
    with activity.track_http() as request:
        request.status = 200
        with activity.track_model("one") as same:
            assert same is request
            assert [request] == activity.running
            request.output_completed(10, 4, 20, 0.5)
        assert request.state is RequestState.RUNNING

    assert ([], [request]) == (activity.running, activity.finished())
    assert request.state is RequestState.COMPLETED
    assert (request.origin.protocol, request.origin.endpoint, request.model) == ("openai", "/chat/completions", "one")
    assert (request.prompt_tokens, request.cached_tokens, request.output_tokens) == (10, 4, 20)


def test_running_and_finished_requests_are_in_order(activity):
    with activity.track_http() as first:
        with activity.track_http() as second:
            assert [first, second] == activity.running
        assert [first] == activity.running
    assert [second, first] == activity.finished()
    assert first.id != second.id


def test_failure_has_the_code_of_the_error(activity):
    with pytest.raises(QueueFull), activity.track_http() as request, activity.track_model("one"):
        raise QueueFull("full")
    assert (request.state, request.code) == (RequestState.FAILED, "queue_full")


def test_unexpected_error_is_an_internal_error(activity):
    with pytest.raises(ZeroDivisionError), activity.track_model("one") as request:
        raise ZeroDivisionError
    assert (request.state, request.code) == (RequestState.FAILED, "internal_error")


@pytest.mark.parametrize("exact", [False, True])
async def test_closed_reader_is_cancelled_unless_it_has_everything(activity, exact):
    async def generate():
        with activity.track_model("one") as request:
            if exact:
                request.output_completed(1, 0, 1, 0.1)
            yield request

    async with contextlib.aclosing(generate()) as events:
        request = await anext(events)
    assert request.state is (RequestState.COMPLETED if exact else RequestState.CANCELLED)


async def test_work_that_continues_in_the_background_reopens_its_entry(activity):
    released = asyncio.Event()

    async def work():
        with activity.track_model("one") as request:
            await released.wait()
            request.output_completed(1, 0, 1, 0.1)

    with activity.track_http() as request:
        task = asyncio.create_task(work())
        request.status = 200
    assert [request] == activity.finished()
    await asyncio.sleep(0)
    assert ([request], []) == (activity.running, activity.finished())
    released.set()
    await task
    assert ([], [request]) == (activity.running, activity.finished())
    assert request.output_tokens == 1


def test_use_of_a_model_outside_a_request_has_an_entry_of_its_own(activity):
    with activity.track_model("one") as first, activity.track_model("two") as second:
        assert [first, second] == activity.running
    assert {"one", "two"} == {request.model for request in activity.finished()}


def test_counted_prompt_is_kept_although_nothing_was_generated(activity):
    with activity.track_model("one") as request:
        request.prompt_processed(12, 0)
        request.output_completed(0, 0, 0, 0.0)
    assert (request.prompt_tokens, request.output_tokens) == (12, 0)


def test_only_the_last_requests_are_kept(activity):
    for _ in range(MAX_FINISHED + 5):
        with activity.track_http():
            pass
    kept = activity.finished()
    assert (MAX_FINISHED, 6) == (len(kept), kept[0].number)
    assert [kept[-1]] == activity.finished(after=kept[-2].number)
    assert activity.finished_count == MAX_FINISHED + 5
