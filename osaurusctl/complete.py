"""Model names for the shell's completion: the daemon's, or none if it cannot be asked."""

from collections.abc import Iterable

import click

from osaurusctl.client import Client
from osaurusctl.errors import CliError
from osaurusd.wire import paths
from osaurusd.wire.admin import IN_MEMORY, ModelInfo, ModelState
from osaurusd.wire.pulls import PullInfo, PullState

_PATIENCE_SECONDS = 1.0


def available(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the models that can be served, aliases included."""
    models = [model for model in _models() if model.state is ModelState.AVAILABLE]
    return matching([name for model in models for name in (model.name, *model.aliases)], incomplete)


def known(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of all models on this machine, without aliases."""
    return matching([model.name for model in _models()], incomplete)


def aliases(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return matching([alias for model in _models() for alias in model.aliases], incomplete)


def loaded(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the models that are in memory."""
    try:
        workers = _client().workers()
    except (CliError, OSError, paths.SocketPathTooLong):
        return []
    return matching([worker.model for worker in workers if worker.state in IN_MEMORY], incomplete)


def pinned(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the models that are pinned."""
    try:
        return matching(_client().pins().pinned, incomplete)
    except (CliError, OSError, paths.SocketPathTooLong):
        return []


def pullable(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the pulls that may be asked for again."""
    return matching([pull.name for pull in _pulls() if pull.state is not PullState.DONE], incomplete)


def pulls(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the pulls that run or wait."""
    states = (PullState.QUEUED, PullState.RUNNING)
    return matching([pull.name for pull in _pulls() if pull.state in states], incomplete)


def keys(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the API keys."""
    try:
        return matching([key.id for key in _client().api_keys()], incomplete)
    except (CliError, OSError, paths.SocketPathTooLong):
        return []


def matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.lower().startswith(incomplete.lower())]


def _models() -> list[ModelInfo]:
    try:
        return _client().models()
    except (CliError, OSError, paths.SocketPathTooLong):
        return []


def _pulls() -> list[PullInfo]:
    try:
        return _client().pulls()
    except (CliError, OSError, paths.SocketPathTooLong):
        return []


def _client() -> Client:
    return Client(paths.resolve().socket, patience=_PATIENCE_SECONDS)
