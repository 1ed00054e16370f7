"""Programs of mlx_lm's, run in the environment that our daemon gives its workers."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from osaurusd.pool.config import find_blas
from osaurusd.rpc.process import WORKER_ENVIRONMENT
from tests import daemons

STOP_SECONDS = 10.0


@contextlib.contextmanager
def running(home: Path, log: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m ARGUMENTS` while the block runs, spoken with through pipes; what it complains of goes to `log`."""
    with (home / log).open("a") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=_environment(home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # Ctrl-C is for the one that measures, which ends its children.
            process_group=0,
        )
    try:
        yield child
    finally:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)
        child.kill()
        child.communicate()


def _environment(home: Path) -> dict[str, str]:
    library = find_blas("auto")
    preload = {} if library is None else {"LD_PRELOAD": str(library)}
    return {**daemons.environment(home), **WORKER_ENVIRONMENT, **preload}
