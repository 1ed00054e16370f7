"""Admin API types survive a round trip. Requests are strict, replies are read leniently."""

import msgspec
import pytest

from osaurusd.wire import admin
from osaurusd.wire.admin import (
    Alias,
    AliasRequest,
    Availability,
    DaemonStatus,
    DetailsRequest,
    FileInfo,
    FileState,
    ImportDone,
    ImportErrorEvent,
    ImportEvent,
    ImportProgress,
    ImportRequest,
    Leftover,
    LoadRequest,
    ModelDetails,
    ModelInfo,
    PruneReply,
    PruneRequest,
    ReloadReply,
    Removed,
    RemoveReply,
    RemoveRequest,
    Route,
    ShutdownReply,
    UnloadReply,
    UnloadRequest,
    VerifiedFile,
    VerifyDone,
    VerifyEvent,
    VerifyFailed,
    VerifyProgress,
    VerifyRequest,
    WorkerInfo,
    WorkerState,
)
from osaurusd.wire.errors import ErrorBody

WORKER = WorkerInfo(
    model="m",
    state=WorkerState.READY,
    pid=1,
    device="gpu",
    memory_bytes=2**40,
    in_flight=1,
    waiting=2,
    load_seconds=0.5,
    idle_seconds=0.0,
)
MODEL = ModelInfo(
    name="m",
    repo="org/M-4bit",
    path="/models/ü",
    source="hub",
    state=Availability.PARTIAL,
    bytes=2**40,
    created=1738193123,
    reason="no tokenizer",
    architecture="llama",
    quantization="4-bit",
    parameters=3_000_000_000,
    context_length=8192,
    aliases=["mine"],
    worker=WORKER,
)
STATUS = DaemonStatus(
    version="1.0",
    api_version=1,
    pid=1,
    instance="abc",
    uptime_seconds=1.5,
    endpoints=["http://127.0.0.1:8080"],
    socket="/s",
    config_file="/c",
    log_file="/l",
    models_dir="/m",
    default_model=None,
    models_available=1,
    workers=[WORKER],
    faults=["the model folder /x does not respond"],
)
ERROR = ErrorBody(message="m", type="invalid_request_error")
REPLIES = [
    WORKER,
    WorkerInfo(model="m", state=WorkerState.STARTING),
    MODEL,
    ModelInfo(name="m", repo="m", path="/", source="imported", state=Availability.AVAILABLE, bytes=0, created=0),
    STATUS,
    UnloadReply(unloaded=["m"]),
    ShutdownReply(pid=1),
    ImportProgress(stage="convert", done=0, total=1),
    ImportDone(model=MODEL),
    ImportErrorEvent(error=ERROR),
    FileInfo(name="config.json", bytes=1),
    ModelDetails(model=MODEL),
    ModelDetails(
        model=MODEL,
        commit="abc",
        license="mit",
        tools=True,
        reasoning=True,
        vision=True,
        temperature=0.6,
        top_p=0.9,
        files=[FileInfo(name="config.json", bytes=1)],
        weights_bytes=2**40,
        kv_bytes_per_token=1,
        full_context_bytes=2,
    ),
    Removed(name="m", repo="org/M", bytes=1),
    RemoveReply(removed=[Removed(name="m", repo="org/M", bytes=1)]),
    Alias(alias="a", target="m"),
    Leftover(path="/x", bytes=1, what="an unfinished import"),
    PruneReply(leftovers=[Leftover(path="/x", bytes=1, what="an unfinished import")]),
    ReloadReply(applied=["log.level"], needs_restart=["server.port"]),
    VerifyProgress(file="f", done=0, total=1),
    VerifiedFile(name="f", bytes=1, state=FileState.CHANGED),
    VerifyDone(model="m", files=[VerifiedFile(name="f", bytes=1, state=state) for state in FileState]),
    VerifyFailed(error=ERROR),
]
REQUESTS = [
    LoadRequest(model="m"),
    UnloadRequest(),
    UnloadRequest(model="m", force=True),
    ImportRequest(path="/x"),
    ImportRequest(path="/x", name="m"),
    DetailsRequest(model="m"),
    RemoveRequest(models=["m"]),
    RemoveRequest(models=["m", "n"], force=True, dry_run=True),
    AliasRequest(alias="a"),
    AliasRequest(alias="a", target="m"),
    PruneRequest(),
    PruneRequest(dry_run=True),
    VerifyRequest(model="m"),
]
IMPORT_EVENTS = [reply for reply in REPLIES if isinstance(reply, ImportEvent)]
VERIFY_EVENTS = [reply for reply in REPLIES if isinstance(reply, VerifyEvent)]


def name_of(value):
    return type(value).__name__


def test_every_type_has_a_sample():
    types = {value for value in vars(admin).values() if isinstance(value, type) and value.__module__ == admin.__name__}
    assert {type(sample) for sample in REPLIES + REQUESTS} == {
        kind for kind in types if issubclass(kind, msgspec.Struct)
    }


@pytest.mark.parametrize("value", REPLIES + REQUESTS, ids=name_of)
def test_a_value_survives_a_round_trip(value):
    assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


@pytest.mark.parametrize("reply", REPLIES, ids=name_of)
def test_replies_may_have_unknown_fields(reply):
    newer = msgspec.to_builtins(reply) | {"added_later": {"a": [1]}}
    assert msgspec.json.decode(msgspec.json.encode(newer), type=type(reply)) == reply


@pytest.mark.parametrize("request_", REQUESTS, ids=name_of)
def test_requests_may_not_have_unknown_fields(request_):
    newer = msgspec.to_builtins(request_) | {"added_later": 1}
    with pytest.raises(msgspec.ValidationError, match="added_later"):
        msgspec.json.decode(msgspec.json.encode(newer), type=type(request_))


@pytest.mark.parametrize(("events", "union"), [(IMPORT_EVENTS, ImportEvent), (VERIFY_EVENTS, VerifyEvent)])
def test_event_lines_are_distinguished_by_their_tag(events, union):
    assert [msgspec.json.decode(msgspec.json.encode(event), type=union) for event in events] == events
    assert [msgspec.to_builtins(event)["event"] for event in events] == ["progress", "done", "error"]


def test_optional_fields_of_requests_have_defaults():
    assert msgspec.json.decode(b"{}", type=UnloadRequest) == UnloadRequest(model=None, force=False)
    assert msgspec.json.decode(b'{"path":"/x"}', type=ImportRequest) == ImportRequest(path="/x", name=None)
    with pytest.raises(msgspec.ValidationError, match="model"):
        msgspec.json.decode(b"{}", type=LoadRequest)


@pytest.mark.parametrize("route", Route)
def test_every_route_has_the_version_prefix(route):
    assert route.startswith("/v0/")
