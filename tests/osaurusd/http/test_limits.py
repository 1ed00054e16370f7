"""What is shared among clients."""

import asyncio
import resource

import pytest

from osaurusd.config import Config, Limits
from osaurusd.errors import TooManyRequests
from osaurusd.http import limits
from osaurusd.http.limits import Gate


def gate(**keys):
    return Gate(lambda: Config(limits=Limits(**keys)))


def test_so_many_requests_are_let_in_and_no_more():
    door = gate(max_requests=2)
    with door.admitted():
        with door.admitted():
            with pytest.raises(TooManyRequests, match=r"`limits\.max_requests`"), door.admitted():
                pass
            assert door.requests == 2
        with door.admitted():
            pass
    assert door.requests == 0


def test_a_request_that_fails_makes_room_too():
    door = gate(max_requests=1)
    with pytest.raises(ValueError, match="x"), door.admitted():
        raise ValueError("x")
    door.check()


def test_a_changed_limit_holds_at_once():
    config = Config(limits=Limits(max_requests=1))
    door = Gate(lambda: config)
    with door.admitted():
        config = Config(limits=Limits(max_requests=2))
        door.check()


def test_a_body_that_is_alone_may_be_of_any_size():
    door = gate(max_buffered_bytes=10)
    door.hold(100)
    with pytest.raises(TooManyRequests):
        door.hold(1)
    door.free(101)
    assert door.buffered_bytes == 0


@pytest.mark.parametrize(
    ("descriptors", "expected"),
    [(resource.RLIM_INFINITY, 1000), (8192, 1000), (256, 80), (10, 1)],
)
def test_connections_leave_descriptors_for_others(monkeypatch, descriptors, expected):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, resource.RLIM_INFINITY))
    assert limits.max_connections(Limits(max_connections=1000)) == expected


class _Request(dict):
    """As much of a request as a deadline looks at."""

    def __init__(self, seconds):
        super().__init__({limits.BEGAN: asyncio.get_running_loop().time()})
        self.app = {limits.GATE: gate(request_seconds=seconds)}


async def test_what_fails_by_a_time_out_of_its_own_is_not_taken_for_the_deadline():
    with pytest.raises(TimeoutError):
        async with limits.Deadline(_Request(100)).enforced():
            raise TimeoutError


async def test_events_before_the_deadline_come_as_they_are():
    async def events():
        yield 1
        yield 2

    assert [event async for event in limits.Deadline(_Request(100)).over(events())] == [1, 2]
