"""Loading the images of a request: what is kept in memory, and for how long the event loop is held."""

import asyncio
import base64
import os
import time

import pytest

from osaurusd.buffered_bytes import BufferedBytes, Reservation
from osaurusd.config import Config, Limits, Vision
from osaurusd.errors import InvalidRequest, TooManyRequests
from osaurusd.inference.images import ImageCollector, ImageLoader
from osaurusd.inference.request import ChatPrompt, Message

MAX_LOOP_SECONDS = 0.02
URL = "https://images.example.com/{}"


def make_loader(download=None, *, max_buffered_bytes=10**6, buffered=None, **vision):
    config = Config(limits=Limits(max_buffered_bytes=max_buffered_bytes), vision=Vision(**vision))
    return ImageLoader(lambda: config, download, buffered or BufferedBytes(lambda: config))


def collect(*values, keeps_texts=False):
    """Return the images, and a prompt that refers to all of them."""
    images = ImageCollector(keeps_texts=keeps_texts)
    parts = [images.add(value, f"images[{number}]") for number, value in enumerate(values)]
    return images, ChatPrompt(messages=[Message(role="user", content=parts)])


def encoded(file):
    return base64.b64encode(file).decode()


async def load(loader, images, prompt):
    async with loader.load(images, prompt) as loaded:
        return loaded.files


@pytest.mark.parametrize("size", [1, 2, 3, 786_431, 786_432, 786_433, 2_000_000])
async def test_every_length_is_decoded(size):
    file = os.urandom(size)
    loader = make_loader(max_buffered_bytes=2 * size)

    assert [file] == await load(loader, *collect(encoded(file)))


@pytest.mark.parametrize("position", [1024 * 1024 - 4, 1024 * 1024 - 1, 1024 * 1024])
async def test_padding_in_the_middle_is_rejected_at_any_position(position):
    text = encoded(bytes(1_200_000))
    text = text[:position] + "=" + text[position + 1 :]

    with pytest.raises(InvalidRequest, match="not valid base64"):
        await load(make_loader(max_buffered_bytes=10**7), *collect(text))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 786_430, 2_000_000])
@pytest.mark.parametrize("separator", ["\n", "\r\n", " \t"])
async def test_line_breaks_in_base64_are_ignored(size, separator):
    """As `base64` and e-mail programs insert them. They do not count as bytes of the image."""
    file = os.urandom(size) + b"."
    text = encoded(file)
    text = "".join(text[start : start + 76] + separator for start in range(0, len(text), 76))
    loader = make_loader(max_buffered_bytes=10**7, max_image_bytes=len(file))

    assert [file] == await load(loader, *collect(f"data:image/png;base64,{text}"))


@pytest.mark.parametrize("size", [1, 2, 786_434])
async def test_padding_may_be_missing(size):
    file = os.urandom(size)

    assert [file] == await load(make_loader(max_image_bytes=size), *collect(encoded(file).rstrip("=")))


async def test_whitespace_after_padding_at_the_end_of_a_chunk_is_ignored():
    text = encoded(bytes(786_431))
    assert 1024 * 1024 == len(text)

    assert [bytes(786_431)] == await load(make_loader(), *collect(text + "\n"))


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:;base64,",
        "data:image;base64,",
        "data: image/png; base64, ",
        " data:image/png;base64,",
        "data:image/svg+xml;charset=utf-8;base64,",
        'data:image/png;name="a.png";base64,',
        "",
        "\n",
    ],
)
async def test_spellings_of_data_urls_are_understood(head):
    assert [b"file"] == await load(make_loader(), *collect(head + encoded(b"file")))


@pytest.mark.parametrize("text", ["photo.png", "data:base64,AAAA", "data:image/png,AAAA", "data:image/png;base64"])
async def test_other_text_is_rejected_with_what_to_send(text):
    with pytest.raises(InvalidRequest, match=r"send the content of the file in standard base64|must be a `data:` URL"):
        await load(make_loader(), *collect(text))


async def test_large_image_does_not_hold_the_event_loop():
    images, prompt = collect(encoded(bytes(20 * 1024 * 1024)))
    loader = make_loader(max_buffered_bytes=10**8)
    loading = asyncio.create_task(load(loader, images, prompt))
    held = []
    while not loading.done():
        started = time.thread_time()
        await asyncio.sleep(0)
        held.append(time.thread_time() - started)

    # The last one includes copying the file, and other programs can slow down a few of them.
    assert sorted(held)[len(held) // 2] < MAX_LOOP_SECONDS
    assert len(held) > 20


async def test_images_whose_texts_stay_share_a_limit():
    loader = make_loader(max_buffered_bytes=100)
    request = collect(encoded(bytes(60)), keeps_texts=True)
    async with loader.load(*request) as loaded:
        with pytest.raises(TooManyRequests, match=r"`limits\.max_buffered_bytes`"):
            await load(loader, *request)
        loaded.release()
        assert [bytes(60)] == await load(loader, *request)

    assert [bytes(60)] == await load(loader, *request)


async def test_text_of_an_image_is_dropped_when_it_is_decoded():
    """So that the bytes of the body, which contains the text, count for the image."""
    images, prompt = collect(encoded(bytes(60)))
    buffered = BufferedBytes(Config)

    async with make_loader(buffered=buffered).load(images, prompt) as loaded:
        assert [bytes(60)] == loaded.files
        assert ("", 0) == (images.sources[0].text, buffered.count)


async def test_bodies_and_downloaded_images_share_a_limit():
    async def download(url, settings):
        return bytes(60)

    config = Config(limits=Limits(max_buffered_bytes=100))
    buffered = BufferedBytes(lambda: config)
    other = Reservation(buffered)
    other.add(50)
    loader = make_loader(download, buffered=buffered, allowed_url_hosts=["*"])
    with pytest.raises(TooManyRequests, match=r"`limits\.max_buffered_bytes`"):
        await load(loader, *collect(URL.format(1)))

    other.release()
    assert [bytes(60)] == await load(loader, *collect(URL.format(1)))
    assert 0 == buffered.count


async def test_body_and_images_of_a_single_request_may_exceed_the_shared_limit():
    config = Config(limits=Limits(max_buffered_bytes=100))
    buffered = BufferedBytes(lambda: config)
    request = Reservation(buffered)
    request.add(90)
    images = [encoded(bytes(60)), encoded(bytes(30))]
    with request.used():
        assert [bytes(60), bytes(30)] == await load(make_loader(buffered=buffered), *collect(*images, keeps_texts=True))
    assert buffered.count == 90


async def test_single_image_may_exceed_the_shared_limit():
    assert [bytes(60)] == await load(make_loader(max_buffered_bytes=10), *collect(encoded(bytes(60))))


async def test_images_of_dropped_messages_are_not_loaded():
    async def download(url, settings):
        raise AssertionError(url)

    images, _ = collect(URL.format(1), encoded(b"kept"))
    _, prompt = collect()
    loader = make_loader(download, allowed_url_hosts=["*"])
    assert [b"", b""] == await load(loader, images, prompt)


async def test_downloads_run_together_and_a_failure_cancels_the_others():
    cancelled = []

    async def download(url, settings):
        if url.endswith("2"):
            raise InvalidRequest("gone")
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.append(url)

    images, prompt = collect(*(URL.format(number) for number in range(3)))
    with pytest.raises(InvalidRequest, match="gone") as raised:
        await load(make_loader(download, allowed_url_hosts=["*"]), images, prompt)

    assert ("images", 2) == raised.value.location
    assert {URL.format(0), URL.format(1)} == set(cancelled)


async def test_downloaded_files_count_against_the_limits():
    async def download(url, settings):
        return bytes(50)

    images, prompt = collect(*(URL.format(number) for number in range(3)))
    with pytest.raises(InvalidRequest, match=r"`vision\.max_request_bytes`"):
        await load(make_loader(download, allowed_url_hosts=["*"], max_request_bytes=120), images, prompt)


@pytest.mark.parametrize(
    ("detail", "expected"), [(None, "auto"), ("auto", "auto"), ("low", "low"), ("high", "high"), ("original", "high")]
)
def test_details_of_openai_are_understood(detail, expected):
    assert expected == ImageCollector().add("AAAA", "image_url", detail).detail


def test_field_of_an_image_is_named_in_errors():
    images, _ = collect("AAAA", "BBBB")

    with pytest.raises(InvalidRequest) as raised, images.named():
        raise InvalidRequest("no", location=("images", 1))
    assert ("images[1]", "`images[1]`: no") == (raised.value.param, raised.value.message)
