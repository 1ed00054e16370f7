"""Logging: readable lines on a terminal, JSON lines in a rotating file."""

import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from osaurusd.lean_imports import structlog
from osaurusd.redaction import redact_fields

MAX_BYTES = 10 * 1024 * 1024
BACKUPS = 5

get_logger = structlog.stdlib.get_logger

_CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

_SHARED_PROCESSORS: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]

# One list for all calls of `configured`: a logger keeps that of its first use, and `capture_logs` of tests modifies it.
_PROCESSORS = [*_SHARED_PROCESSORS, structlog.stdlib.ProcessorFormatter.wrap_for_formatter]


class LogFile(logging.handlers.RotatingFileHandler):
    """A rotating log file that only its owner can read.

    Attributes:
        fault: why the last record could not be written; None if it was.
    """

    def __init__(self, path: Path) -> None:
        self.fault: str | None = None
        self._failed = False
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", delay=True)
        try:
            self._create()
        except OSError as error:
            # A full disk must not keep the daemon from starting. The first record tries again.
            self.fault = f"cannot write the log {path}: {error}"

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        if self.stream is None:
            self._create()
        return bool(super().shouldRollover(record))

    def doRollover(self) -> None:
        super().doRollover()
        self._create()

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        super().emit(record)
        if not self._failed:
            self.fault = None

    def _create(self) -> None:
        """Create the file that the base class opens for the next record, or correct its mode."""
        path = Path(self.baseFilename)
        path.touch(mode=0o600)
        path.chmod(0o600)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - signature of the base class
        """Record the error. Standard error may be on the same full disk."""
        self._failed = True
        self.fault = f"cannot write the log {self.baseFilename}: {sys.exception()}"


@contextmanager
def configured(level: str, file: Path, console: TextIO | None) -> Iterator[LogFile]:
    """Log to `file`, and to `console` if given, while the block runs.

    Records pass through a queue, so that a slow disk never blocks the event loop.
    """
    log_file = LogFile(file)
    log_file.setFormatter(_formatter([structlog.processors.JSONRenderer()]))
    handlers: list[logging.Handler] = [log_file]
    if console is not None:
        console_handler = logging.StreamHandler(console)
        console_handler.setFormatter(_formatter(_console_renderers(console)))
        handlers.append(console_handler)

    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, *handlers)
    root = logging.getLogger()
    root.handlers = [_RawQueueHandler(records)]
    set_level(level)
    # The daemon logs each request itself.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    structlog.configure(
        processors=_PROCESSORS,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    listener.start()
    try:
        yield log_file
    finally:
        listener.stop()
        root.handlers = []
        for handler in handlers:
            handler.close()


def current_request_id() -> str | None:
    """Return the id of the client's request that the current task handles."""
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    return None if request_id is None else str(request_id)


def set_level(level: str) -> None:
    """Set the least severe level that is logged."""
    logging.getLogger().setLevel(level.upper())


class _RawQueueHandler(logging.handlers.QueueHandler):
    """Enqueues records unchanged. The base class would turn structlog's dictionaries into text."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


def _console_renderers(console: TextIO) -> list[structlog.typing.Processor]:
    if not console.isatty():
        return [structlog.processors.JSONRenderer()]
    return [_escape_control_characters, structlog.dev.ConsoleRenderer(colors=True)]


def _escape_control_characters(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Keep untrusted text, such as request paths and the output of workers, from controlling the terminal."""
    return {
        key: value.translate(_CONTROL_CHARACTERS) if isinstance(value, str) else value for key, value in event.items()
    }


def _redact(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Redact every record, including those of libraries. Runs in the listener's thread, not on the event loop."""
    return redact_fields(event)


def _formatter(renderers: list[structlog.typing.Processor]) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED_PROCESSORS,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _redact, *renderers],
    )
