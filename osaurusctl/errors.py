"""CLI errors, and the exit code and hint for each of the daemon's error codes."""

from enum import IntEnum

from osaurusd.wire.errors import ErrorBody, ErrorCode


class ExitCode(IntEnum):
    """Exit codes. They are a stable, documented interface: never renumber them."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_RUNNING = 3
    MODEL_NOT_FOUND = 4
    OUT_OF_MEMORY = 5
    VERSION_MISMATCH = 6
    INTERRUPTED = 130


EXIT_CODES = {
    ErrorCode.MODEL_NOT_FOUND: ExitCode.MODEL_NOT_FOUND,
    ErrorCode.MODEL_NOT_DOWNLOADED: ExitCode.MODEL_NOT_FOUND,
    ErrorCode.INSUFFICIENT_MEMORY: ExitCode.OUT_OF_MEMORY,
    ErrorCode.VERSION_MISMATCH: ExitCode.VERSION_MISMATCH,
}
"""Every other error code exits with `FAILURE`."""

RESTART = 'run "osaurusctl restart"'

_SEE_LOG = 'run "osaurusctl logs" for details'

HINTS = {
    ErrorCode.MODEL_NOT_FOUND: 'run "osaurusctl ls" to list the models on this machine',
    ErrorCode.MODEL_NOT_DOWNLOADED: 'run "osaurusctl pull NAME" to download it',
    ErrorCode.DISK_FULL: 'free disk space with "osaurusctl rm NAME" or "osaurusctl prune"; '
    '"osaurusctl ls --sort size" lists the largest models first',
    ErrorCode.INSUFFICIENT_MEMORY: 'free memory with "osaurusctl unload NAME"; "osaurusctl ps" lists loaded models',
    ErrorCode.VERSION_MISMATCH: f"{RESTART} to finish the upgrade",
    ErrorCode.BUSY: 'run "osaurusctl unload NAME --force" to unload it anyway; "osaurusctl ps" shows running requests',
    ErrorCode.NAME_TAKEN: 'repeat the command with --name NAME; "osaurusctl ls" lists the names in use',
    ErrorCode.CONFIG_ERROR: 'run "osaurusctl config check" to validate the file; "osaurusctl config path" prints '
    "its path",
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 'run "osaurusctl ls" to see the context length of each model',
    ErrorCode.DRAINING: 'run "osaurusctl undrain" to accept requests again',
    ErrorCode.SHUTTING_DOWN: 'wait until it has stopped, then run "osaurusctl up"',
    ErrorCode.NOT_SERVING: 'run "osaurusctl doctor" for details; the daemon recovers once the cause is fixed',
    ErrorCode.LOAD_FAILED: _SEE_LOG,
    ErrorCode.WORKER_CRASHED: _SEE_LOG,
    ErrorCode.HOST_LOST: 'run "osaurusctl doctor" to see which hosts respond; the next request starts the model again',
    ErrorCode.INTERNAL_ERROR: _SEE_LOG,
}


class CliError(Exception):
    """A failure: an error message, an optional hint with the next step, and an exit code."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        exit_code: ExitCode = ExitCode.FAILURE,
        code: str = "failure",
        kind: str = "cli_error",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code
        self.body = ErrorBody(message=message, type=kind, param=param, code=code)


class DaemonNotRunning(CliError):
    def __init__(self, *, start_command: str = "osaurusctl up") -> None:
        super().__init__(
            f'osaurusd is not running; run "{start_command}" to start it',
            exit_code=ExitCode.NOT_RUNNING,
            code="daemon_not_running",
        )


class Interrupted(CliError):
    def __init__(self, message: str = "interrupted") -> None:
        super().__init__(message, exit_code=ExitCode.INTERRUPTED, code="interrupted")


class InvalidReply(CliError):
    """The daemon's reply is malformed or incomplete."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid reply from osaurusd: {reason}", hint=_SEE_LOG, code="broken_reply")


class VersionMismatch(CliError):
    def __init__(self, own_version: str, daemon_version: str) -> None:
        code = ErrorCode.VERSION_MISMATCH
        super().__init__(
            f"osaurusctl {own_version} and the running osaurusd {daemon_version} use different admin API versions",
            hint=HINTS[code],
            exit_code=EXIT_CODES[code],
            code=code,
        )


def error_from_body(body: ErrorBody) -> CliError:
    """Convert the daemon's error. A code that this version does not define is an ordinary failure."""
    code = ErrorCode(body.code) if body.code in set(ErrorCode) else None
    return CliError(
        body.message,
        hint=HINTS.get(code) if code else None,
        exit_code=EXIT_CODES.get(code, ExitCode.FAILURE) if code else ExitCode.FAILURE,
        code=body.code or "failure",
        kind=body.type,
        param=body.param,
    )
