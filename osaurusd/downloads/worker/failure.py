"""Why a pull ends, or why a part of it has to be begun again."""

from osaurusd.wire.errors import ErrorCode


class PullError(Exception):
    """The pull cannot go on. The message says why and names the file or the repo; what was received is kept."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.PULL_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class Retry(Exception):
    """A request failed in a way that may pass. `after` is how many seconds the server asks to be left alone."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Expired(Retry):
    """A signed address is no longer good; the hub gives a new one."""


class Changed(Exception):
    """The file is not the one whose beginning was received, or not as long; it has to be begun again."""


class RangesIgnored(Exception):
    """The server sends the whole file, whichever part of it is asked for."""
