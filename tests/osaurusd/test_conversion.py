"""Requests with many values are converted in a thread, all others in the event loop."""

import asyncio
import json
import threading

import pytest

from osaurusd import conversion
from osaurusd.http.json import decode_body

MANY = json.dumps([1] * 600_000).encode()


async def converting_thread():
    return await conversion.convert(threading.get_ident)


@pytest.mark.parametrize(
    ("body", "has_many_values"),
    [
        (MANY, True),
        (b"[1, 2, 3]", False),
        (json.dumps([*range(10_000)]).encode(), False),
        (json.dumps(["a" * 2_000_000]).encode(), False),
    ],
)
async def test_only_a_large_body_with_many_values_is_converted_in_a_thread(body, has_many_values):
    await decode_body(body, list)
    assert has_many_values == (await converting_thread() != threading.get_ident())


async def test_each_request_of_a_connection_is_estimated_anew():
    await decode_body(MANY, list)
    await decode_body(b"[1]", list)
    assert await converting_thread() == threading.get_ident()


async def test_loop_runs_during_a_long_conversion():
    await decode_body(MANY, list)
    went_on = threading.Event()
    asyncio.get_running_loop().call_later(0.001, went_on.set)
    assert await conversion.convert(went_on.wait, 60)


async def test_errors_are_raised():
    await decode_body(MANY, list)
    with pytest.raises(ZeroDivisionError):
        await conversion.convert(divmod, 1, 0)
