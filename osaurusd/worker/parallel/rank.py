"""What the executors of all ranks have in common."""

import mlx.core as mx

from osaurusd.worker.engine.kv_cache import Cache
from osaurusd.worker.engine.prefix_cache import Tokens
from osaurusd.worker.parallel.local import LocalExecutor


class RankExecutor(LocalExecutor):
    """An executor whose passes exchange arrays with other ranks.

    All ranks must do that in the same order. Within a pass, the arrays depend on each other. Of two passes that MLX
    evaluates together, it may begin with either. So every pass is evaluated, or scheduled, before the next one.
    """

    def _prefill_padded(self, cache: Cache, parts: list[Tokens]) -> None:
        super()._prefill_padded(cache, parts)
        mx.async_eval([layer.state for layer in cache])  # type: ignore[no-untyped-call]
