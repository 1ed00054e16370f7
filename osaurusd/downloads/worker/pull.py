"""One pull, from asking the hub to the snapshot in the cache."""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import truststore
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported by import alone

from osaurusd import __version__
from osaurusd.downloads.worker import choice, listing, place, space
from osaurusd.downloads.worker.choice import HubFile, Listing
from osaurusd.downloads.worker.failure import PullError, Retry
from osaurusd.downloads.worker.meter import Meter
from osaurusd.downloads.worker.partial import Partial
from osaurusd.downloads.worker.source import Source
from osaurusd.downloads.worker.staging import Staging
from osaurusd.downloads.worker.transfer import Limits, Patience, Transfer, together
from osaurusd.models.safetensors import INDEX
from osaurusd.models.worker import verify
from osaurusd.models.worker.failure import printable
from osaurusd.models.worker.records import Digest
from osaurusd.rpc import job, messages
from osaurusd.wire.pulls import PullStage

_READ_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Order:
    """What is to be pulled, where to, and within which limits. `margin` is bytes of the disk that stay free."""

    cache: Path
    repo: str
    revision: str
    limits: Limits
    margin: int


async def answer(order: Order, send: job.Send) -> messages.Pulled | messages.HubFailure:
    """Bring a model into the cache, going on where an earlier pull ended.

    If that cannot be done, what was received is kept for the next time.

    Args:
        order: what is to be done.
        send: takes frames that tell how far it is.
    """
    meter = Meter(send)
    telling = asyncio.create_task(meter.run())
    try:
        found = await _listing(order, meter)
        return await _Pull(order, found, meter).run()
    except PullError as error:
        return messages.HubFailure(code=error.code, message=printable(error.message))
    finally:
        telling.cancel()


async def _listing(order: Order, meter: Meter) -> Listing:
    """What the hub has, asked for until it answers."""

    def tell(trouble: str) -> None:
        meter.note = trouble

    patience = Patience(order.limits.patience_seconds, tell)
    while True:
        try:
            found = await asyncio.to_thread(listing.files, order.repo, order.revision)
        except Retry as error:
            await patience.pause(error)
        else:
            meter.note = None
            return found


class _Pull:
    """The work on one commit of one repo."""

    def __init__(self, order: Order, found: Listing, meter: Meter) -> None:
        self._order = order
        self._found = found
        self._meter = meter
        self._staging = Staging(order.cache, found.repo)
        self._cache = order.cache

    async def run(self) -> messages.Pulled:
        files = choice.choose(self._found)
        try:
            with self._staging.locked():
                place.clear(self._staging)
                self._staging.keep_only(files)
                await self._bring(files)
                self._meter.stage = PullStage.PLACING
                self._meter.tell()
                await asyncio.to_thread(place.place, self._staging, self._found, files, self._order.revision)
                self._staging.remove()
        except OSError as error:
            missing = self._meter.total - self._meter.present
            raise space.explained(error, self._cache, missing, self._order.margin) from error
        return messages.Pulled(commit=self._found.commit, bytes=sum(file.size for file in files))

    async def _bring(self, files: Sequence[HubFile]) -> None:
        """Have every file verified, in staging or in the cache."""
        # Two names for the same content are one download.
        missing = list({file.etag: file for file in files if not self._is_here(file)}.values())
        self._count(files, missing)
        async with _session(self._order.limits) as session:
            source = Source(session, constants.ENDPOINT, _headers(), self._found.repo, self._found.commit)
            transfer = Transfer(source, self._order.limits, self._meter)
            telling = {choice.CONFIG, choice.TOKENIZER_CONFIG, INDEX}
            await together(self._obtain(transfer, file) for file in missing if file.name in telling)
            self._judge(files, telling)
            self._meter.total = sum(file.size for file in files)
            space.check(self._cache, self._meter.total - self._meter.present, self._order.margin)
            await together(self._obtain(transfer, file) for file in missing if file.name not in telling)

    def _is_here(self, file: HubFile) -> bool:
        return self._staging.verified(file).exists() or place.is_here(self._cache, self._found.repo, file)

    def _count(self, files: Sequence[HubFile], missing: Sequence[HubFile]) -> None:
        meter = self._meter
        meter.stage, meter.commit = PullStage.DOWNLOADING, self._found.commit
        meter.to_hash = sum(file.size for file in missing)
        meter.present = sum(file.size for file in files) - meter.to_hash
        for file in missing:
            partial = Partial(self._staging.folder, file.etag, file.size)
            meter.present += partial.received
            partial.close()

    def _judge(self, files: Sequence[HubFile], telling: set[str]) -> None:
        contents = {}
        for file in files:
            if file.name in telling:
                staged = self._staging.verified(file)
                there = staged if staged.exists() else place.blob(self._cache, self._found.repo, file)
                contents[file.name] = there.read_bytes()
        choice.refuse_unloadable(self._found.repo, [file.name for file in files], contents)

    async def _obtain(self, transfer: Transfer, file: HubFile) -> None:
        """Receive a file and see that it is the right one; if it is not, once more."""
        for _ in range(2):
            partial = Partial(self._staging.folder, file.etag, file.size)
            try:
                await transfer.receive(file, partial)
                right = await self._is_right(file, partial)
                if right:
                    await asyncio.to_thread(partial.finish, self._staging.verified(file))
                    return
            except BaseException:
                partial.close()
                raise
            partial.close()
            partial.remove()
            self._meter.present -= file.size
            self._meter.hashed -= file.size
        raise PullError(f"{self._found.repo}: {file.name} came twice, and neither time did it match its checksum")

    async def _is_right(self, file: HubFile, partial: Partial) -> bool:
        digest = Digest("sha256" if file.sha256 else "git", file.etag)
        told = 0

        def progress(done: int) -> None:
            nonlocal told
            self._meter.hashed += done - told
            told = done

        found = await asyncio.to_thread(verify.hash_file, partial.data, file.size, digest, progress)
        return found == digest.value


@contextlib.asynccontextmanager
async def _session(limits: Limits) -> AsyncIterator[aiohttp.ClientSession]:
    # The environment's proxies hold for the hub's client, and so for us.
    connector = aiohttp.TCPConnector(limit=limits.connections, ssl=_certificates())
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.stall_seconds, sock_read=limits.stall_seconds)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, trust_env=True, auto_decompress=False, read_bufsize=_READ_BYTES
    ) as session:
        yield session


def _certificates() -> ssl.SSLContext:
    """The authorities that the hub's client trusts: those of the system, unless the environment names others."""
    if file := os.environ.get("SSL_CERT_FILE"):
        return ssl.create_default_context(cafile=file)
    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _headers() -> dict[str, str]:
    """With the token that the hub's client would send: HF_TOKEN, else the stored one."""
    headers: dict[str, str] = build_hf_headers(library_name="osaurusd", library_version=__version__)
    return headers
