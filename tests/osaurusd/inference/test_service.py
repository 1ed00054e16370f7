"""The service finds models, leases workers and streams their events, without any protocol."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from osaurusd import log
from osaurusd.buffered_bytes import BufferedBytes
from osaurusd.config import Config, Defaults, Input, Log
from osaurusd.config.schema import Models
from osaurusd.errors import InvalidRequest, ModelNotFound
from osaurusd.inference import limits
from osaurusd.inference.events import Completed, Delta, Started, Timings, ToolCallDelta
from osaurusd.inference.service import Service
from osaurusd.models.record import GenerationDefaults, ModelRecord
from osaurusd.pool.snapshot import WorkerSnapshot
from osaurusd.wire.admin import Availability, WorkerState

from .builders import COMPLETED, USAGE, build_request, collect, stream

RECORD = ModelRecord(
    name="known",
    repo="org/known",
    path=Path("/models/known"),
    source="hub",
    state=Availability.AVAILABLE,
    created=0,
    generation=GenerationDefaults(temperature=0.5),
)
EVENTS = [
    Started(prompt_tokens=1),
    Delta(reasoning="hm "),
    Delta(text="an "),
    Delta(index=1, text="other"),
    Delta(text="answer ", tool_calls=[ToolCallDelta(index=0, name="call", arguments="{}")]),
    COMPLETED,
]


OTHER = replace(RECORD, name="other", repo="org/other")


class FakeCatalog:
    def __init__(self, *records):
        self._records = records

    async def find(self, model):
        if model != RECORD.name:
            raise ModelNotFound("no such model", location=("model",))
        return RECORD

    async def available(self):
        return list(self._records)


class FakePool:
    """Leases a worker that yields `events` for each request, after waiting for it."""

    def __init__(self, events=EVENTS, load_seconds=0.0, queue_seconds=0.0):
        self.leases = 0
        self.requests = []
        self.loaded = []
        self._events = events
        self._waits = {"load_seconds": load_seconds, "queue_seconds": queue_seconds}

    @contextlib.asynccontextmanager
    async def lease(self, record):
        assert record is RECORD
        self.leases += 1
        try:
            yield SimpleNamespace(client=SimpleNamespace(generate=self._generate), **self._waits)
        finally:
            self.leases -= 1

    def snapshot(self):
        return self.loaded

    def _generate(self, request, *, continuation=False, blobs=()):
        self.blobs = blobs
        self.requests.append((request, continuation))
        return stream(*self._events)


def make_service(pool=None, *, records=(RECORD, OTHER), download=None, **config):
    settings = lambda: Config(**config)  # noqa: E731
    return Service(FakeCatalog(*records), pool or FakePool(), settings, download, BufferedBytes(settings))


async def test_named_model_is_found():
    assert await make_service().find("known") is RECORD


@pytest.mark.parametrize("model", [None, ""])
async def test_default_model_serves_requests_without_a_model(model):
    assert await make_service(default_model="known").find(model) is RECORD


async def test_only_model_serves_requests_without_a_model():
    assert await make_service(records=[RECORD]).find(None) is RECORD


async def test_only_loaded_model_serves_requests_without_a_model():
    pool = FakePool()
    pool.loaded = [
        WorkerSnapshot(key="org/other", name="other", state=WorkerState.READY),
        WorkerSnapshot(key="org/known", name="known", state=WorkerState.FAILED),
    ]
    assert await make_service(pool).find(None) is OTHER


@pytest.mark.parametrize(
    ("records", "loaded"), [([RECORD, OTHER], []), ([RECORD, OTHER], ["known", "other"]), ([], [])]
)
async def test_request_without_a_model_is_rejected_if_the_choice_is_ambiguous(records, loaded):
    pool = FakePool()
    pool.loaded = [WorkerSnapshot(key=name, name=name, state=WorkerState.READY) for name in loaded]
    with pytest.raises(InvalidRequest, match="`default_model`") as raised:
        await make_service(pool, records=records).find(None)
    assert raised.value.location == ("model",)


async def test_unknown_model_is_served_by_the_default_model_only_if_configured():
    with pytest.raises(ModelNotFound):
        await make_service(default_model="known").find("unknown")
    assert await make_service(default_model="known", default_for_unknown=True).find("unknown") is RECORD


async def test_a_chat_model_ranks_documents_only_if_configured():
    with pytest.raises(InvalidRequest, match="generates text"):
        await make_service().find("known", "rerank")
    service = make_service(models=Models(rerankers=["ORG/Known"]))
    assert await service.find("known", "rerank") is RECORD
    assert await service.find("known", "generate") is RECORD


async def test_long_model_name_is_rejected():
    with pytest.raises(InvalidRequest, match=r"input\.max_name_length") as raised:
        await make_service().find("x" * 257)
    assert raised.value.location == ("model",)


def test_defaults_combine_model_and_configuration():
    defaults = make_service(defaults=Defaults(temperature=0.7, top_p=0.9, max_tokens=5)).defaults(RECORD)
    assert (defaults.temperature, defaults.top_p, defaults.max_tokens) == (0.5, 0.9, 5)


async def test_events_of_the_worker_are_passed_on():
    events = await collect(make_service().generate(RECORD, [build_request()]))
    assert events[:-1] == EVENTS[:-1]
    assert events[-1].usage == USAGE


async def test_lease_lasts_until_the_stream_is_closed():
    pool = FakePool()
    async with contextlib.aclosing(make_service(pool).generate(RECORD, [build_request()])) as events:
        await anext(events)
        assert pool.leases == 1
    assert pool.leases == 0


async def test_several_prompts_are_sent_as_one_request_and_continuations():
    pool = FakePool([COMPLETED])
    requests = [build_request(text) for text in "abc"]
    (completed,) = await collect(make_service(pool).generate(RECORD, requests))
    assert pool.requests == [(requests[0], False), (requests[1], True), (requests[2], True)]
    assert completed.usage.prompt_tokens == 3 * USAGE.prompt_tokens


async def test_waiting_for_the_worker_is_added_to_the_timings():
    worker_timings = Timings(queue=1.0, prefill=2.0, decode=3.0)
    pool = FakePool([Completed(usage=USAGE, timings=worker_timings)], load_seconds=0.5, queue_seconds=0.25)
    (completed,) = await collect(make_service(pool).generate(RECORD, [build_request()]))
    assert completed.timings == Timings(queue=1.25, load=0.5, prefill=2.0, decode=3.0)


async def test_limits_are_checked_before_a_worker_is_leased():
    pool = FakePool()
    service = make_service(pool, input=Input(max_choices=1))
    with pytest.raises(InvalidRequest) as raised:
        await collect(service.generate(RECORD, [build_request(), build_request(n=2)]))
    assert (raised.value.location, raised.value.prompt_index) == (("n",), 1)
    assert pool.requests == []


def test_lengths_of_lists_are_limited_before_they_are_converted():
    service = make_service(input=Input(max_prompts=2))
    service.check_lengths({limits.PROMPTS: ["a", "b"], limits.MESSAGES: None})
    with pytest.raises(InvalidRequest, match=r"at most 2 prompts, not 3") as raised:
        service.check_lengths({limits.PROMPTS: ["a", "b", "c"]})
    assert raised.value.location == limits.PROMPTS


def test_only_lengths_are_checked_before_a_list_is_converted():
    make_service(input=Input(max_schema_bytes=1)).check_lengths({limits.TOOLS: [object()]})


def read_log(file):
    return {line["event"]: line for line in map(json.loads, file.read_text().splitlines())}


async def test_prompts_and_output_are_logged_with_log_content(tmp_path):
    file = tmp_path / "log"
    with log.configured("info", file, None):
        await collect(make_service(log=Log(content=True)).generate(RECORD, [build_request("question")]))
    lines = read_log(file)
    assert lines["prompt"]["prompts"][0]["text"] == "question"
    assert lines["output"]["outputs"] == {"0": "hm an answer call{}", "1": "other"}


async def test_output_of_an_aborted_request_is_logged(tmp_path):
    file = tmp_path / "log"
    with log.configured("info", file, None):
        service = make_service(log=Log(content=True))
        async with contextlib.aclosing(service.generate(RECORD, [build_request()])) as events:
            await anext(events)
            await anext(events)
    assert read_log(file)["output"]["outputs"] == {"0": "hm "}


async def test_content_is_not_logged_by_default(tmp_path):
    file = tmp_path / "log"
    with log.configured("debug", file, None):
        await collect(make_service().generate(RECORD, [build_request("question")]))
    assert "question" not in file.read_text()
