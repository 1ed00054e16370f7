"""What the configuration says about workers and their memory, in the pool's terms."""

from dataclasses import dataclass, field

import psutil

from osaurusd.config import Config
from osaurusd.log import get_logger
from osaurusd.pool import blas
from osaurusd.pool.resident import Rules
from osaurusd.pool.shares import KeepAlive, Share
from osaurusd.rpc.process import Launch

log = get_logger(__name__)

# What all models together may use of the machine's memory, unless the configuration says.
BUDGET_PART = 0.7
# What one worker keeps at most of it: in freed buffers, and of earlier prompts unless the configuration says.
FREED_PART = 0.05
PREFIX_CACHE_PART = 0.125


@dataclass(frozen=True)
class Terms:
    """How workers are started, what each is told, how memory is given out, and how long what stays.

    A spare worker is kept for `spare_seconds` after a load; 0 is none.
    """

    launch: Launch
    share: Share = field(default_factory=Share)
    rules: Rules = field(default_factory=Rules)
    keep_alive: KeepAlive = field(default_factory=KeepAlive)
    spare_seconds: float = 0.0


def of(config: Config) -> Terms:
    """The terms that a configuration sets on this machine.

    Raises:
        ConfigError: a library that it names is not there.
    """
    physical = psutil.virtual_memory().total
    worker, residency = config.worker, config.residency
    kept = worker.prefix_cache_bytes
    return Terms(
        launch=_launch(config),
        share=Share(
            dequantize=worker.dequantize,
            cache_limit_bytes=int(physical * FREED_PART),
            prefix_cache_bytes=int(physical * PREFIX_CACHE_PART) if kept is None else kept,
            max_waiting=worker.max_waiting,
            stall_seconds=worker.stall_seconds,
        ),
        rules=Rules(
            budget_bytes=residency.budget_bytes or int(physical * BUDGET_PART),
            max_waiting=worker.max_waiting,
            wait_seconds=residency.wait_seconds,
            min_residency_seconds=residency.min_residency_seconds,
        ),
        keep_alive=KeepAlive(residency.keep_alive_seconds, residency.keep_alive_by_model),
        spare_seconds=residency.spare_seconds,
    )


def _launch(config: Config) -> Launch:
    preload = blas.find(config.worker.blas)
    log.info("BLAS for workers", preloaded=str(preload) if preload else None)
    return Launch(
        preload=preload,
        load_timeout=config.worker.load_timeout_seconds,
        stop_grace=config.worker.stop_grace_seconds,
        hang=config.residency.hang_seconds,
    )
