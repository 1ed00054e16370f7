"""Random requests get a valid response or an error that the client caused, from a real daemon and worker."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect

from osaurusd.wire.admin import Route
from tests.fuzz import inputs
from tests.fuzz.target import SERVER_FAULTS, TIMEOUT_SECONDS, Target, check_error

EXAMPLES = 25
LONG_EXAMPLES = 3000
ADMIN_EXAMPLES = 15
# Grammars take the most time.
CONSTRAINED_EXAMPLES = 12

OTHER_PREFIXES = ["/responses", "/conversations", "/decisions", "/api/", "/messages"]
FINAL_EVENTS = ("error", "response.completed", "response.incomplete", "response.failed")

any_body = st.one_of(inputs.values.map(lambda value: json.dumps(value).encode()), st.binary())
KINDS = {
    "random": st.tuples(inputs.PATHS, any_body),
    "mutated": inputs.mutated_requests(),
    "corrupted": inputs.corrupted_requests(),
    "constrained": st.tuples(st.just("/chat/completions"), inputs.constrained_requests()),
}


def send_examples(target: Target, kind: str, examples: int, *, derandomize: bool) -> None:
    @settings(max_examples=examples, derandomize=derandomize)
    @given(KINDS[kind])
    def send(request: tuple[str, bytes]) -> None:
        target.post(*request).check()

    run: Callable[[], None] = send
    run()


@pytest.mark.parametrize("kind", KINDS)
def test_random_requests_are_answered_or_rejected(target: Target, kind: str) -> None:
    before = target.processes()
    send_examples(target, kind, CONSTRAINED_EXAMPLES if kind == "constrained" else EXAMPLES, derandomize=True)

    assert before == target.processes()


def send_to_other(target: Target, prefix: str, examples: int, *, derandomize: bool) -> None:
    @settings(max_examples=examples, derandomize=derandomize)
    @given(inputs.requests_to(prefix))
    def send(request: tuple[str, bytes]) -> None:
        target.post(*request).check_other()

    before = target.processes()
    send()

    assert before == target.processes()


@pytest.mark.parametrize("prefix", OTHER_PREFIXES)
def test_random_requests_of_other_apis_are_answered_or_rejected(target: Target, prefix: str) -> None:
    send_to_other(target, prefix, EXAMPLES, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("prefix", OTHER_PREFIXES)
def test_many_random_requests_of_other_apis_are_answered_or_rejected(target: Target, prefix: str) -> None:
    send_to_other(target, prefix, LONG_EXAMPLES, derandomize=False)


def send_messages(target: Target, examples: int, *, derandomize: bool) -> None:
    """Send messages over one WebSocket, each of which must be answered before the next one."""

    @settings(max_examples=examples, derandomize=derandomize)
    @given(
        st.one_of(
            inputs.text,
            inputs.values.map(json.dumps),
            inputs.mutations(inputs.RESPONSE_REQUESTS).map(inputs.create_event),
        )
    )
    def send(message: str) -> None:
        socket.send(message)
        event = json.loads(socket.recv(TIMEOUT_SECONDS))
        while event["type"] not in FINAL_EVENTS:
            event = json.loads(socket.recv(TIMEOUT_SECONDS))
        assert event["type"] != "error" or event["status"] not in SERVER_FAULTS, event

    before = target.processes()
    with connect(f"{target.daemon.url.replace('http', 'ws')}/responses", max_size=None) as socket:
        send()

    assert before == target.processes()


def test_random_messages_over_a_websocket_are_answered_or_rejected(target: Target) -> None:
    send_messages(target, EXAMPLES, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_random_messages_over_a_websocket_are_answered_or_rejected(target: Target) -> None:
    send_messages(target, LONG_EXAMPLES, derandomize=False)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_many_random_requests_are_answered_or_rejected(target: Target, kind: str) -> None:
    before = target.processes()
    send_examples(target, kind, LONG_EXAMPLES, derandomize=False)
    print(f"{kind}: {target.sent} requests so far")

    assert before == target.processes()


# Routes that neither stop anything nor contact another host.
ADMIN_FIELDS = {
    Route.LOAD: ["model", "keep_alive_seconds"],
    Route.PINS: ["model", "pinned"],
    Route.DETAILS: ["model"],
    Route.VERIFY: ["model"],
    Route.REMOVE: ["models", "force", "dry_run"],
    Route.ALIASES: ["alias", "target"],
    Route.IMPORTS: ["path", "name"],
}


@pytest.mark.parametrize("route", ADMIN_FIELDS)
def test_random_admin_requests_are_answered_or_rejected(target: Target, route: Route) -> None:
    fields = st.fixed_dictionaries({}, optional=dict.fromkeys(ADMIN_FIELDS[route], inputs.hostile_values))

    @settings(max_examples=ADMIN_EXAMPLES, derandomize=True)
    @given(st.one_of(fields, inputs.values))
    def send(body: object) -> None:
        status, response = target.daemon.admin("POST", route, body)
        target.sent += 1
        if status != 200:
            assert status < 500, response
            check_error(response, status)

    send()
