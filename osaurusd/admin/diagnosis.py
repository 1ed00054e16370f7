"""`GET /v0/diagnosis`: what the daemon itself sees, which a CLI in a terminal may see otherwise."""

import asyncio
import resource
from collections import Counter
from pathlib import Path

import psutil
from aiohttp import web

from osaurusd.admin.context import DAEMON
from osaurusd.http import body, keys
from osaurusd.models.roots import hub_cache
from osaurusd.pool import blas
from osaurusd.wire.diagnosis import Diagnosis, StoreProbe

PROBE_SECONDS = 5.0


async def show(request: web.Request) -> web.Response:
    """Everything at once; a folder that does not answer costs a few seconds and not more."""
    config = request.app[keys.SETTINGS].config
    daemon = request.app[DAEMON]
    roots = [daemon.paths.models_dir, hub_cache(), *map(Path, config.models.roots)]
    found = blas.find(config.worker.blas)
    return body.reply(
        Diagnosis(
            installation=daemon.installation,
            stores=list(await asyncio.gather(*map(_probe, roots))),
            blas=str(found) if found else None,
            open_files=psutil.Process().num_fds(),
            open_files_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            tasks=_tasks(),
        )
    )


def _tasks() -> dict[str, int]:
    coroutines = (task.get_coro() for task in asyncio.all_tasks())
    return dict(Counter(getattr(coroutine, "__qualname__", repr(coroutine)) for coroutine in coroutines))


async def _probe(path: Path) -> StoreProbe:
    try:
        # In a thread: a privacy prompt or a network volume may hold it for hours.
        await asyncio.wait_for(asyncio.to_thread(_read, path), PROBE_SECONDS)
    except FileNotFoundError:
        # Nothing was ever downloaded there, which is no fault.
        return StoreProbe(path=str(path), readable=True, reason="it does not exist yet")
    except TimeoutError:
        return StoreProbe(path=str(path), readable=False, reason=f"it does not answer within {PROBE_SECONDS:g} s")
    except OSError as error:
        return StoreProbe(path=str(path), readable=False, reason=error.strerror or str(error))
    return StoreProbe(path=str(path), readable=True)


def _read(path: Path) -> None:
    """Raise what keeps us from reading a folder."""
    next(path.expanduser().iterdir(), None)
