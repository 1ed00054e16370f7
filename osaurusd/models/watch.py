"""Scanning roots that may be slow or hang, without ever making anybody wait for them for long."""

import asyncio
import threading
from concurrent.futures import Future

from osaurusd.log import get_logger
from osaurusd.models.record import ModelRecord
from osaurusd.models.scan import Scanner

log = get_logger(__name__)

PATIENCE_SECONDS = 2.0
"""How long a root may take before what it held last has to do. A first scan of thousands of models is faster."""


class Watch:
    """One root, scanned in a thread of its own. A network volume or a privacy prompt can hold a thread for hours."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._running: Future[list[ModelRecord]] | None = None
        self.records: list[ModelRecord] = []
        self.fault: str | None = None

    async def look(self) -> None:
        """Scan. A root that takes too long keeps its `records`, and `fault` says why; nobody waits for it again."""
        if self._running is not None and not self._running.done():
            return
        if self._running is None:
            self._running = _in_thread(self._scanner)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                self.records = await asyncio.shield(asyncio.wrap_future(self._running))
        except TimeoutError:
            self._report("does not answer")
            return
        except OSError as error:
            self._report(f"cannot be read: {error.strerror or error}")
        else:
            self.fault = None
        self._running = None

    def _report(self, what: str) -> None:
        fault = f"the models folder {self._scanner.root.path} {what}"
        if fault != self.fault:
            log.warning("models folder", fault=fault)
        self.fault = fault


def _in_thread(scanner: Scanner) -> Future[list[ModelRecord]]:
    """Run a scan in a daemon thread: unlike an executor's, it does not keep the process from ending."""
    future: Future[list[ModelRecord]] = Future()

    def work() -> None:
        try:
            future.set_result(scanner.scan())
        except Exception as error:  # noqa: BLE001  whoever waits for the future gets it
            future.set_exception(error)

    threading.Thread(target=work, name=f"scan {scanner.root.path}", daemon=True).start()
    return future
