"""Model names for the shell's completion: the daemon's, or none if it cannot be asked."""

import click

from osaurusctl.client import Client
from osaurusctl.errors import CliError
from osaurusd.wire import paths
from osaurusd.wire.admin import ModelState

_PATIENCE_SECONDS = 1.0


def available(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the models that can be served."""
    try:
        models = _client().models()
    except (CliError, OSError, paths.SocketPathTooLong):
        return []
    return _matching([model.name for model in models if model.state is ModelState.AVAILABLE], incomplete)


def loaded(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the models that are in memory."""
    try:
        workers = _client().workers()
    except (CliError, OSError, paths.SocketPathTooLong):
        return []
    return _matching([worker.model for worker in workers], incomplete)


def _client() -> Client:
    return Client(paths.resolve().socket, patience=_PATIENCE_SECONDS)


def _matching(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.lower().startswith(incomplete.lower())]
