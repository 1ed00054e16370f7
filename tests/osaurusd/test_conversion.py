"""Requests with many values are converted in a thread, all others in the event loop."""

import asyncio
import contextlib
import gc
import json
import threading

import pytest

from osaurusd import conversion
from osaurusd.http import json as http_json
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


async def test_garbage_is_not_collected_while_a_large_body_is_decoded_and_converted(monkeypatch):
    enabled = []

    def decode(body, type_):
        enabled.append(gc.isenabled())

    monkeypatch.setattr(http_json, "decode_json", decode)
    await decode_body(MANY, list)
    enabled.append(gc.isenabled())
    enabled.append(await conversion.convert(gc.isenabled))
    enabled.append(gc.isenabled())
    await decode_body(b"[1]", list)
    assert enabled == [False, True, False, True, True]


def test_first_of_overlapping_blocks_ends_the_pause():
    with conversion.collection_paused():
        with conversion.collection_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()

    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(conversion.collection_paused())
    second.enter_context(conversion.collection_paused())
    first.close()
    assert gc.isenabled()
    second.close()


def test_failure_ends_the_pause():
    with pytest.raises(ZeroDivisionError), conversion.collection_paused():
        divmod(1, 0)
    assert gc.isenabled()
    with conversion.collection_paused():
        assert not gc.isenabled()
