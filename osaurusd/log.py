"""Logging for the daemon: readable lines on a terminal, JSON lines in a rotating file."""

import logging
import logging.handlers
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import structlog

MAX_BYTES = 10 * 1024 * 1024
BACKUPS = 5

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

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        Path(self.baseFilename).chmod(0o600)
        return stream


@contextmanager
def configured(level: str, file: Path, console: TextIO | None) -> Iterator[None]:
    """Log to `file`, and to `console` if there is one, while the block runs.

    Records cross a queue, so that a slow disk never holds up the event loop.
    """
    to_file = _OwnerOnlyRotation(file, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8")
    to_file.setFormatter(_formatter(structlog.processors.JSONRenderer()))
    handlers: list[logging.Handler] = [to_file]
    if console is not None:
        to_console = logging.StreamHandler(console)
        to_console.setFormatter(_formatter(_console_renderer(console)))
        handlers.append(to_console)

    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, *handlers)
    root = logging.getLogger()
    root.handlers = [_PassThrough(records)]
    root.setLevel(level.upper())
    # One line a request at most, and that one is ours.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        root.handlers = []
        for handler in handlers:
            handler.close()


class _PassThrough(logging.handlers.QueueHandler):
    """Hands records over as they are: structlog's are dictionaries that only the formatter may turn into text."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


def _console_renderer(console: TextIO) -> structlog.typing.Processor:
    return structlog.dev.ConsoleRenderer(colors=True) if console.isatty() else structlog.processors.JSONRenderer()


def _formatter(renderer: structlog.typing.Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
