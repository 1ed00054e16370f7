"""Find the model to talk to. On a terminal, offer to start the daemon and to download the model."""

import os
import re
from collections.abc import Callable, Iterable

import click

from osaurusctl import fuzzy_pull, process, progress
from osaurusctl.client import Client
from osaurusctl.command import can_prompt
from osaurusctl.errors import CliError, DaemonNotRunning, ExitCode
from osaurusctl.output import Notes, Output
from osaurusctl.service import control, lookup
from osaurusd.wire import paths
from osaurusd.wire.admin import Availability, DaemonStatus, WorkerInfo
from osaurusd.wire.errors import ErrorCode

_START_TIMEOUT_SECONDS = 60.0
_NAME = re.compile(r"[\w./:@+-]+")
_NOT_DOWNLOADED = (ErrorCode.MODEL_NOT_FOUND, ErrorCode.MODEL_NOT_DOWNLOADED)

_USES = {"generate": "generate text", "embed": "compute embeddings", "rerank": "rank documents"}
_COMMANDS = {"generate": "run", "embed": "embed", "rerank": "rerank"}


class ModelFinder:
    """Finds and loads models.

    Args:
        yes: start the daemon and download models without asking.
    """

    def __init__(self, client: Client, output: Output, *, yes: bool = False) -> None:
        self._client = client
        self._output = output
        self._yes = yes

    def require_daemon(self) -> DaemonStatus:
        """Return the status of the daemon. If it is not running, offer to start it.

        Raises:
            DaemonNotRunning: the daemon is not running, and the user does not want to start it.
        """
        try:
            return self._client.status()
        except DaemonNotRunning:
            if not self._agrees("osaurusd is not running. Start it?"):
                raise
        with progress.spinner(self._output, "starting osaurusd"):
            self._start_daemon()
        return self._client.status()

    def names(self) -> list[str]:
        """Return the names of all models on this machine, aliases included."""
        self.require_daemon()
        return [name for model in self._client.models() for name in (model.name, *model.aliases)]

    def default(self, *, command: str, task: str = "generate") -> str:
        """Return the default model, or else the only one for this task that is available or loaded.

        Raises:
            CliError: there is no such model; the message names `command` and the key.
        """
        status = self.require_daemon()
        if status.default_model is not None and task == "generate":
            return status.default_model
        available = [model for model in self._client.models() if model.state == Availability.AVAILABLE]
        models = [model for model in available if model.task == task]
        loaded = [model for model in models if model.worker is not None]
        for candidates in (models, loaded):
            if len(candidates) == 1:
                return candidates[0].name
        if not models:
            raise CliError(
                "there are no models on this machine" + (f" that {_USES[task]}" if available else ""),
                hint='run "osaurusctl pull NAME" to download one; "osaurusctl search --recommended" lists some',
                exit_code=ExitCode.MODEL_NOT_FOUND,
                code=ErrorCode.MODEL_NOT_FOUND,
            )
        raise CliError(
            f"no model given, there are several, and `default_model` is not set in {status.config_file}"
            if task == "generate"
            else f"no model given, and there are several that {_USES[task]}",
            hint=f'run "osaurusctl {command} NAME" with a model from "osaurusctl ls"',
            exit_code=ExitCode.USAGE,
            code="no_default_model",
        )

    def check_task(self, name: str, task: str) -> None:
        """Check that a model is for a task, if it is on this machine.

        Raises:
            CliError: it is for another one.
        """
        for model in self._client.models():
            if name.lower() in (model.name, model.repo.lower(), *model.aliases) and model.task != task:
                command = _COMMANDS[model.task]
                raise CliError(
                    f'model "{model.name}" cannot {_USES[task]}; it can {_USES[model.task]}',
                    hint=f'run "osaurusctl {command} --help"',
                    exit_code=ExitCode.USAGE,
                    code=ErrorCode.INVALID_REQUEST,
                )

    def load(self, name: str, keep_alive: float | None = None) -> WorkerInfo:
        """Load a model. If it is not on this machine, offer to download it."""
        try:
            return self._load(name, keep_alive)
        except CliError as error:
            if error.body.code not in _NOT_DOWNLOADED or not (self._yes or can_prompt(self._output)):
                raise
            if not self._agrees(f"{error}\nDownload {name} now?"):
                # The question was preceded by the error.
                self._output.note("nothing downloaded")
                raise click.exceptions.Exit(ExitCode.MODEL_NOT_FOUND) from None
        return self._load(self._download(name), keep_alive)

    def _load(self, name: str, keep_alive: float | None) -> WorkerInfo:
        with progress.spinner(self._output, f"loading {name}"):
            return self._client.load(name, keep_alive)

    def _download(self, name: str) -> str:
        notes = Notes()
        pull = fuzzy_pull.start_pull(
            self._client, name, os.environ.get("HF_TOKEN") or None, notes, take_first=self._yes or self._output.json
        )
        failed = progress.follow_pulls(self._client, [pull.id], notes)
        if failed:
            raise progress.pull_error(failed[0])
        return pull.name

    def _start_daemon(self) -> None:
        manager = lookup.find_own_service()
        if manager is not None:
            control.start(manager, self._client, _START_TIMEOUT_SECONDS)
        else:
            process.start_daemon(paths.resolve(), self._client, [], _START_TIMEOUT_SECONDS)

    def _agrees(self, question: str) -> bool:
        if self._yes:
            return True
        return can_prompt(self._output) and self._output.confirm(question, default=True)


def split_arguments(arguments: tuple[str, ...], names: Callable[[], Iterable[str]]) -> tuple[str | None, str | None]:
    """Split `[NAME] [PROMPT...]` into the name of the model and the prompt.

    A first argument that cannot be a name, such as a sentence, is part of the prompt.

    Args:
        arguments: what the user wrote.
        names: returns the names of all models; called only for a first argument with unusual characters.
    """
    if not arguments:
        return None, None
    first, *words = arguments
    if not first or _NAME.fullmatch(first) or first in set(names()):
        return first or None, " ".join(words) or None
    return None, " ".join(arguments)
