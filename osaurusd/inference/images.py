"""The images of a request: collected while a protocol parses it, and loaded before it runs.

A request refers to an image by its number, which is the index of its blob in the frame to the worker. Here, the bytes
are only decoded from base64 or downloaded: the worker checks that they are an image.
"""

import asyncio
import binascii
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from osaurusd.buffered_bytes import BufferedBytes
from osaurusd.config import Config, Vision
from osaurusd.errors import InvalidRequest
from osaurusd.inference.field_paths import FieldPaths
from osaurusd.inference.request import ChatPrompt, Detail, ImagePart, Location, Prompt, ToolResultPart
from osaurusd.wire.errors import as_json

IMAGES: Location = ("images",)
"""The location of the images in errors; `(*IMAGES, 0)` is the first one."""

Download = Callable[[str, Vision], Awaitable[bytes]]
"""Downloads the image at a URL within the limits of the settings; raises `InvalidRequest`."""

DETAILS: Mapping[str, Detail] = {"auto": "auto", "low": "low", "high": "high", "original": "high"}
"""The values of `detail` in OpenAI's API, and what they mean here."""

# Decoding this much base64 takes a few milliseconds.
_CHUNK_CHARACTERS = 1024 * 1024

# Of all requests together: their bytes are counted when they are complete.
_MAX_DOWNLOADS = 8
# Line breaks and spaces in base64, which programs such as `base64` insert.
_WHITESPACE = " \t\r\n"
# Padding, and whitespace behind it.
_MAX_PADDED_END = 8
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]")
_MAX_DATA_URL_HEAD = 256
_MAX_SCHEME = 32

_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?:;[^,]*)?;\s*base64\s*,", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_WEB = re.compile(r"https?:", re.IGNORECASE)


class ImageSource(msgspec.Struct, frozen=True):
    """Where the bytes of an image come from: base64 text, or a URL.

    Attributes:
        path: the field of the request.
    """

    path: str
    text: str
    is_url: bool

    @property
    def size(self) -> int:
        """How many bytes the text decodes to; 0 for a URL."""
        if self.is_url:
            return 0
        characters = len(self.text) - sum(map(self.text.count, _WHITESPACE))
        return characters * 3 // 4 - self.text.count("=", -_MAX_PADDED_END)


class ImageCollector:
    """Collects the images of a request, in the order of their numbers.

    Args:
        keeps_texts: the base64 text of images stays in memory, because it is stored or needed again. Otherwise it is
            dropped once it is decoded, so that the bytes of the request's body count for the image.
    """

    def __init__(self, *, keeps_texts: bool = False) -> None:
        self.keeps_texts = keeps_texts
        self.sources: list[ImageSource] = []

    def add(self, value: str, path: str, detail: str | None = None) -> ImagePart:
        """Add an image and return the part that refers to it.

        Args:
            value: a `data:` URL, base64 text, which may have line breaks, or the URL of an image to download.
            path: the field with the value.
            detail: how closely the model looks at it; None means the default.

        Raises:
            InvalidRequest: the value or the detail is invalid.
        """
        source, media_type = _parse_source(value, path)
        self.sources.append(source)
        number = len(self.sources) - 1
        return ImagePart(blob=number, media_type=media_type, detail=_parse_detail(detail, path))

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Name the field of the image in errors about an image that the block raises."""
        paths = {(*IMAGES, number): source.path for number, source in enumerate(self.sources)}
        with FieldPaths(paths).named():
            yield


def _parse_detail(detail: str | None, path: str) -> Detail:
    if detail is None:
        return "auto"
    if detail in DETAILS:
        return DETAILS[detail]
    # Beside the URL of the image: in an object of its own, or in the part.
    path = f"{path.rpartition('.')[0]}.detail"
    allowed = ", ".join(f"`{each}`" for each in DETAILS)
    raise InvalidRequest(f"`{path}`: must be one of {allowed}, not {as_json(detail[:100])}", param=path)


def _parse_source(value: str, path: str) -> tuple[ImageSource, str]:
    """Return the source, and the declared media type, which is empty if there is none."""
    if value[:1].isspace():
        value = value.lstrip()
    if _WEB.match(value):
        return ImageSource(path, value, is_url=True), ""
    if data_url := _DATA_URL.match(value, 0, _MAX_DATA_URL_HEAD):
        text, media_type = value[data_url.end() :], data_url["type"].strip()
    elif _SCHEME.match(value, 0, _MAX_SCHEME):
        raise InvalidRequest(
            f"`{path}`: must be a `data:` URL such as `data:image/png;base64,...`, base64, or an http(s) URL",
            param=path,
        )
    else:
        text, media_type = value, ""
    if not text:
        raise InvalidRequest(f"`{path}`: the image is empty", param=path)
    return ImageSource(path, text, is_url=False), media_type


class LoadedImages(msgspec.Struct):
    """The images of a request in memory.

    Attributes:
        files: by the numbers of the images; empty for those that the prompt does not refer to. The connection to the
            worker empties the list when it has sent them.
    """

    files: list[bytes] = msgspec.field(default_factory=list)
    _counted: contextlib.ExitStack = msgspec.field(default_factory=contextlib.ExitStack)

    def release(self) -> None:
        """Stop counting their bytes: the worker has them."""
        self._counted.close()


class ImageLoader:
    """Loads the images of requests.

    Args:
        config: returns the configuration in force.
        download: downloads images.
        buffered: counts the bytes of images.
    """

    def __init__(self, config: Callable[[], Config], download: Download, buffered: BufferedBytes) -> None:
        self._config = config
        self._download = download
        self._buffered = buffered
        self._downloads = asyncio.Semaphore(_MAX_DOWNLOADS)
        # So that only one image at a time is in memory as both text and bytes.
        self._decoding = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def load(self, images: ImageCollector, prompt: Prompt) -> AsyncIterator[LoadedImages]:
        """Load the images that a prompt refers to, and count their bytes until they are released or the block ends.

        Raises:
            InvalidRequest: an image is invalid, cannot be downloaded or exceeds a limit.
            TooManyRequests: the bodies and images of all requests exceed `limits.max_buffered_bytes`.
        """
        numbers = sorted(set(_referenced(prompt)))
        self._check({number: images.sources[number] for number in numbers})
        with contextlib.ExitStack() as counted:
            files = await self._load(images, numbers, counted)
            yield LoadedImages([files.pop(number, b"") for number in range(len(images.sources))], counted)

    def _check(self, sources: Mapping[int, ImageSource]) -> None:
        """Check what is known before anything is decoded."""
        vision = self._config().vision
        if len(sources) > vision.max_images:
            raise InvalidRequest(
                f"the request has {len(sources)} images; at most {vision.max_images} are allowed (`vision.max_images`)",
                location=(*IMAGES, list(sources)[vision.max_images]),
            )
        for number, source in sources.items():
            if source.is_url and not vision.allowed_url_hosts:
                raise InvalidRequest(
                    "the daemon does not download images; send the content of the file in base64, or allow its host in "
                    "`vision.allowed_url_hosts`",
                    location=(*IMAGES, number),
                )
            if source.size > vision.max_image_bytes:
                raise _too_large(source.size, vision, number)

    async def _load(
        self, images: ImageCollector, numbers: Sequence[int], counted: contextlib.ExitStack
    ) -> dict[int, bytes]:
        vision = self._config().vision
        files: dict[int, bytes] = {}

        async def load(number: int) -> None:
            source = images.sources[number]
            if source.is_url:
                file = await self._fetch(source, vision, number)
                self._count(len(file), counted)
            else:
                file = await self._decode(images, number, counted)
            files[number] = file
            _check_sizes(files, number, vision)

        urls = [number for number in numbers if images.sources[number].is_url]
        for number in numbers:
            if number not in urls:
                await load(number)
        try:
            async with asyncio.TaskGroup() as group:
                for number in urls:
                    group.create_task(load(number))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return files

    async def _decode(self, images: ImageCollector, number: int, counted: contextlib.ExitStack) -> bytes:
        async with self._decoding:
            source = images.sources[number]
            if images.keeps_texts:
                self._count(source.size, counted)
            else:
                images.sources[number] = replace(source, text="")
            return await _decode(source.text, (*IMAGES, number))

    async def _fetch(self, source: ImageSource, vision: Vision, number: int) -> bytes:
        try:
            async with self._downloads:
                return await self._download(source.text, vision)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, location=(*IMAGES, number)) from error

    def _count(self, size: int, counted: contextlib.ExitStack) -> None:
        reservation = self._buffered.find_reservation()
        counted.callback(reservation.remove, size)
        reservation.add(size)


def _check_sizes(files: Mapping[int, bytes], number: int, vision: Vision) -> None:
    if len(files[number]) > vision.max_image_bytes:
        raise _too_large(len(files[number]), vision, number)
    total = sum(map(len, files.values()))
    if total > vision.max_request_bytes:
        raise InvalidRequest(
            f"the images of the request have at least {total} bytes; at most {vision.max_request_bytes} are allowed "
            "(`vision.max_request_bytes`)",
            location=(*IMAGES, number),
        )


def _too_large(size: int, vision: Vision, number: int) -> InvalidRequest:
    return InvalidRequest(
        f"the image has {size} bytes; at most {vision.max_image_bytes} are allowed (`vision.max_image_bytes`)",
        location=(*IMAGES, number),
    )


def _referenced(prompt: Prompt) -> Iterator[int]:
    """Yield the numbers of the images of a prompt."""
    messages = prompt.messages if isinstance(prompt, ChatPrompt) else []
    for message in messages:
        for part in message.content:
            parts = part.content if isinstance(part, ToolResultPart) else (part,)
            yield from (each.blob for each in parts if isinstance(each, ImagePart))


async def _decode(text: str, location: Location) -> bytes:
    """Decode base64, with or without line breaks and padding, without holding the event loop for long."""
    pieces: list[bytes] = []
    rest = ""
    for start in range(0, len(text), _CHUNK_CHARACTERS):
        if start:
            await asyncio.sleep(0)
        characters = rest + _remove_whitespace(text[start : start + _CHUNK_CHARACTERS])
        is_last = start + _CHUNK_CHARACTERS >= len(text)
        end = len(characters) if is_last else len(characters) // 4 * 4
        rest = characters[end:]
        try:
            if characters and pieces and len(pieces[-1]) % 3:
                raise ValueError("padding in the middle")
            padding = "=" * (-end % 4)
            pieces.append(binascii.a2b_base64(characters[:end] + padding, strict_mode=True))
        except ValueError as error:
            raise _not_base64(error, characters, location) from error
    return b"".join(pieces)


def _remove_whitespace(text: str) -> str:
    for character in _WHITESPACE:
        text = text.replace(character, "")
    return text


def _not_base64(error: ValueError, text: str, location: Location) -> InvalidRequest:
    other = _NOT_BASE64.search(text)
    reason = f"it contains {as_json(other[0])}" if other else f"{str(error)[:1].lower()}{str(error)[1:]}"
    return InvalidRequest(
        f"the image is not valid base64: {reason}; send the content of the file in standard base64", location=location
    )
