"""What the CLI fails with, and the exit code and the next step for each of the daemon's error codes."""

from enum import IntEnum

from osaurusd.wire.errors import ErrorBody, ErrorCode


class Exit(IntEnum):
    """Exit codes. They are API: documented, tested, and never renumbered."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_RUNNING = 3
    MODEL_NOT_FOUND = 4
    OUT_OF_MEMORY = 5
    VERSION_MISMATCH = 6
    INTERRUPTED = 130


EXIT_CODES = {
    ErrorCode.MODEL_NOT_FOUND: Exit.MODEL_NOT_FOUND,
    ErrorCode.MODEL_NOT_DOWNLOADED: Exit.MODEL_NOT_FOUND,
    ErrorCode.INSUFFICIENT_MEMORY: Exit.OUT_OF_MEMORY,
    ErrorCode.VERSION_MISMATCH: Exit.VERSION_MISMATCH,
}
"""Every other code is an ordinary failure."""

_SEE_LOG = "`osaurusctl status` names the log file"
RESTART = "`osaurusctl restart`"

HINTS = {
    ErrorCode.MODEL_NOT_FOUND: "`osaurusctl ls` lists the models on this machine",
    ErrorCode.MODEL_NOT_DOWNLOADED: "`osaurusctl pull NAME` downloads it",
    ErrorCode.DISK_FULL: "`osaurusctl ls --sort size`, `osaurusctl rm NAME` and `osaurusctl prune` make room",
    ErrorCode.INSUFFICIENT_MEMORY: "`osaurusctl ps` shows what is loaded, and `osaurusctl unload NAME` makes room",
    ErrorCode.VERSION_MISMATCH: f"{RESTART} finishes the upgrade",
    ErrorCode.BUSY: "`osaurusctl ps` shows what is running or pinned, and `osaurusctl unload NAME --force` ends it",
    ErrorCode.NAME_TAKEN: "`osaurusctl import PATH --name NAME` gives it another name",
    ErrorCode.CONFIG_ERROR: "`osaurusctl config path` names the file, and `osaurusctl config check` checks it",
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: "`osaurusctl ls` shows how many tokens each model takes",
    ErrorCode.SHUTTING_DOWN: "`osaurusctl up` starts it again once it has stopped",
    ErrorCode.NOT_SERVING: "it goes on by itself once that is mended; `osaurusctl doctor` looks closer",
    ErrorCode.LOAD_FAILED: _SEE_LOG,
    ErrorCode.WORKER_CRASHED: _SEE_LOG,
    ErrorCode.INTERNAL_ERROR: _SEE_LOG,
}


class CliError(Exception):
    """A failure that is shown as one line, with a hint where there is a next step."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        exit_code: Exit = Exit.FAILURE,
        code: str = "failure",
        kind: str = "cli_error",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code
        self.body = ErrorBody(message=message, type=kind, param=param, code=code)


class DaemonNotRunning(CliError):
    def __init__(self) -> None:
        message = "osaurusd is not running; `osaurusctl up` starts it"
        super().__init__(message, exit_code=Exit.NOT_RUNNING, code="daemon_not_running")


class Interrupted(CliError):
    def __init__(self, message: str = "interrupted") -> None:
        super().__init__(message, exit_code=Exit.INTERRUPTED, code="interrupted")


class BrokenReply(CliError):
    """The daemon answered something that is not an answer, or only a part of one."""

    def __init__(self, what: str) -> None:
        super().__init__(f"osaurusd's reply could not be used: {what}", hint=_SEE_LOG, code="broken_reply")


class VersionMismatch(CliError):
    def __init__(self, own: str, daemon: str) -> None:
        code = ErrorCode.VERSION_MISMATCH
        super().__init__(
            f"osaurusctl {own} and the running osaurusd {daemon} speak different versions of the admin API",
            hint=HINTS[code],
            exit_code=EXIT_CODES[code],
            code=code,
        )


def from_body(body: ErrorBody) -> CliError:
    """The daemon's error, with its exit code and its hint; a code that only a newer daemon knows is a failure."""
    code = ErrorCode(body.code) if body.code in set(ErrorCode) else None
    return CliError(
        body.message,
        hint=HINTS.get(code) if code else None,
        exit_code=EXIT_CODES.get(code, Exit.FAILURE) if code else Exit.FAILURE,
        code=body.code or "failure",
        kind=body.type,
        param=body.param,
    )
