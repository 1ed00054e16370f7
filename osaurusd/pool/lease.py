"""What a caller of the pool gets or waits for."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec

from osaurusd.errors import OsaurusError
from osaurusd.inference.events import CandidateScores, Completed, Event
from osaurusd.inference.request import GenerationRequest, ScoringRequest
from osaurusd.inference.retrieval import EmbedRequest, RerankRequest, Scores, Vectors
from osaurusd.pool.state import ModelState
from osaurusd.rpc.client import WorkerClient


class Lease(msgspec.Struct, frozen=True):
    """The right to send requests to a loaded model.

    `queue_seconds` and `load_seconds` are how long the lease waited for memory or a free place, and for the load.
    """

    client: WorkerClient
    queue_seconds: float
    load_seconds: float

    def generate(
        self, request: GenerationRequest, *, continuation: bool = False, blobs: list[bytes] | None = None
    ) -> AsyncGenerator[Event]:
        """Run a request; see `WorkerClient.generate`."""
        return self.client.generate(request, continuation=continuation, blobs=blobs)

    async def embed(self, request: EmbedRequest) -> tuple[Vectors, Completed]:
        """Embed texts; see `WorkerClient.embed`."""
        return await self.client.embed(request)

    async def rerank(self, request: RerankRequest) -> tuple[Scores, Completed]:
        """Score documents; see `WorkerClient.rerank`."""
        return await self.client.rerank(request)

    async def score(self, request: ScoringRequest) -> tuple[CandidateScores, Completed]:
        """Score candidates; see `WorkerClient.score`."""
        return await self.client.score(request)


class FutureWaiter:
    """A waiter that resumes a coroutine."""

    def __init__(self) -> None:
        self.future: asyncio.Future[ModelState] = asyncio.get_running_loop().create_future()

    def grant(self, model: ModelState) -> bool:
        if self.future.done():
            return False
        self.future.set_result(model)
        return True

    def reject(self, error: OsaurusError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    @property
    def granted(self) -> ModelState | None:
        if not self.future.done() or self.future.cancelled() or self.future.exception() is not None:
            return None
        return self.future.result()
