"""Whatever comes, the answer is an answer or the error envelope, and never our fault. The real daemon and worker."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osaurusd.wire.admin import Route
from tests.fuzz import inputs
from tests.fuzz.target import Target, judge_error

FEW = 60
MANY = 3000

anything = st.tuples(inputs.PATHS, st.one_of(inputs.values.map(lambda value: json.dumps(value).encode()), st.binary()))
constrained = st.tuples(st.just("/chat/completions"), inputs.constrained())
KINDS = {
    "anything": anything,
    "mutated": inputs.mutated(),
    "damaged": inputs.damaged(),
    "constrained": constrained,
}


def attack(target: Target, kind: str, examples: int, *, derandomize: bool) -> None:
    @settings(max_examples=examples, derandomize=derandomize)
    @given(KINDS[kind])
    def send(sent: tuple[str, bytes]) -> None:
        target.post(*sent).judge()

    run: Callable[[], None] = send
    run()


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_is_answered_rightly_or_refused(target: Target, kind: str) -> None:
    before = target.processes()
    attack(target, kind, FEW, derandomize=True)
    assert before == target.processes()


# Those that end nothing and ask nobody elsewhere.
ADMIN = {
    Route.LOAD: ["model", "keep_alive_seconds"],
    Route.PINS: ["model", "pinned"],
    Route.DETAILS: ["model"],
    Route.VERIFY: ["model"],
    Route.REMOVE: ["models", "force", "dry_run"],
    Route.ALIASES: ["alias", "target"],
    Route.IMPORTS: ["path", "name"],
}


@pytest.mark.parametrize("route", ADMIN)
def test_orders_of_the_admin_api_are_held_to_the_same(target: Target, route: Route) -> None:
    fields = st.fixed_dictionaries({}, optional=dict.fromkeys(ADMIN[route], inputs.nasty))

    @settings(max_examples=25, derandomize=True)
    @given(st.one_of(fields, inputs.values))
    def send(order: object) -> None:
        status, answer = target.daemon.admin("POST", route, order)
        target.tried += 1
        if status != 200:
            assert status < 500, answer
            judge_error(answer, status)

    send()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_every_request_of_very_many_is_answered_rightly_or_refused(target: Target, kind: str) -> None:
    before = target.processes()
    attack(target, kind, MANY, derandomize=False)
    print(f"{kind}: {target.tried} requests tried so far")
    assert before == target.processes()
