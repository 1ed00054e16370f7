"""Shell completion of model names and other values that the daemon provides; nothing if it does not respond."""

from collections.abc import Callable, Iterable

import click

from osaurusctl.client import Client
from osaurusctl.errors import CliError
from osaurusd.wire import paths
from osaurusd.wire.admin import IN_MEMORY, Availability
from osaurusd.wire.pulls import PullState

_TIMEOUT_SECONDS = 1.0

Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.lower().startswith(incomplete.lower())]


def _completer(list_names: Callable[[Client], Iterable[str]]) -> Completer:
    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        try:
            client = Client(paths.resolve().socket, timeout=_TIMEOUT_SECONDS)
            return matching(list_names(client), incomplete)
        except (CliError, OSError, paths.SocketPathTooLong):
            return []

    return complete


def _available(client: Client, task: str | None = None) -> Iterable[str]:
    for model in client.models():
        if model.state is Availability.AVAILABLE and task in (None, model.task):
            yield from (model.name, *model.aliases)


def _unfinished_pulls(client: Client) -> Iterable[str]:
    return (pull.name for pull in client.pulls() if pull.state is not PullState.DONE)


def _active_pulls(client: Client) -> Iterable[str]:
    return (pull.name for pull in client.pulls() if pull.state in (PullState.QUEUED, PullState.RUNNING))


available_models = _completer(_available)
"""Models that can be served, aliases included."""

embedders = _completer(lambda client: _available(client, "embed"))
rerankers = _completer(lambda client: _available(client, "rerank"))

all_models = _completer(lambda client: (model.name for model in client.models()))
"""Every model on this machine, without aliases."""

loaded_models = _completer(lambda client: (w.model for w in client.workers() if w.state in IN_MEMORY))
pinned_models = _completer(lambda client: client.pins().pinned)
aliases = _completer(lambda client: (alias for model in client.models() for alias in model.aliases))
unfinished_pulls = _completer(_unfinished_pulls)
active_pulls = _completer(_active_pulls)
key_ids = _completer(lambda client: (key.id for key in client.api_keys()))
host_names = _completer(lambda client: (host.name for host in client.hosts()))
