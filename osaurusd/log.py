"""Logging for the daemon: readable lines on a terminal, JSON lines in a rotating file."""

import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import structlog

from osaurusd.redaction import redacted_fields

MAX_BYTES = 10 * 1024 * 1024
BACKUPS = 5

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

get_logger = structlog.stdlib.get_logger

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


class _OwnerOnlyRotation(logging.handlers.RotatingFileHandler):
    """Rotates like its base; what it creates is readable by its owner only."""

    def __init__(self, file: Path) -> None:
        self.fault: str | None = None
        self._failed = False
        super().__init__(file, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", delay=True)
        try:
            self.stream = self._open()
        except OSError as error:
            # A disk that is full is no reason not to start; the first record tries again.
            self.fault = f"the log {file} cannot be written: {error}"

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        Path(self.baseFilename).chmod(0o600)
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        super().emit(record)
        if not self._failed:
            self.fault = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - the base's signature
        """Remember what kept a record out of the file. Standard error may be on the same full disk."""
        self._failed = True
        self.fault = f"the log {self.baseFilename} cannot be written: {sys.exception()}"


_FILES: list[_OwnerOnlyRotation] = []


def faults() -> list[str]:
    """What is amiss with the log file at the moment."""
    return [file.fault for file in _FILES if file.fault is not None]


@contextmanager
def configured(level: str, file: Path, console: TextIO | None) -> Iterator[None]:
    """Log to `file`, and to `console` if there is one, while the block runs.

    Records cross a queue, so that a slow disk never holds up the event loop.
    """
    to_file = _OwnerOnlyRotation(file)
    to_file.setFormatter(_formatter([structlog.processors.JSONRenderer()]))
    handlers: list[logging.Handler] = [to_file]
    if console is not None:
        to_console = logging.StreamHandler(console)
        to_console.setFormatter(_formatter(_for_console(console)))
        handlers.append(to_console)

    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, *handlers)
    root = logging.getLogger()
    root.handlers = [_PassThrough(records)]
    set_level(level)
    # One line a request at most, and that one is ours.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    _FILES.append(to_file)
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        _FILES.remove(to_file)
        root.handlers = []
        for handler in handlers:
            handler.close()


def set_level(level: str) -> None:
    """Log from this level on."""
    logging.getLogger().setLevel(level.upper())


class _PassThrough(logging.handlers.QueueHandler):
    """Hands records over as they are: structlog's are dictionaries that only the formatter may turn into text."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


def _for_console(console: TextIO) -> list[structlog.typing.Processor]:
    if not console.isatty():
        return [structlog.processors.JSONRenderer()]
    return [_without_controls, structlog.dev.ConsoleRenderer(colors=True)]


def _without_controls(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Paths and last words come from strangers; they must not move the cursor of whoever watches the log."""
    return {key: value.translate(_CONTROLS) if isinstance(value, str) else value for key, value in event.items()}


def _without_secrets(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """The one place that every record passes, ours or a library's. Runs where the file is written, not on the loop."""
    return redacted_fields(event)


def _formatter(renderers: list[structlog.typing.Processor]) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _without_secrets, *renderers],
    )
