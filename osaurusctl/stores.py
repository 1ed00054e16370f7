"""Model folders of other programs, which the daemon can serve from without changing them."""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import msgspec

from osaurusctl import config_file
from osaurusctl.client import Client
from osaurusctl.errors import DaemonNotRunning
from osaurusctl.output import Output
from osaurusctl.programs import lm_studio

_FIXED = (
    ("oMLX", "~/.omlx/models"),
    ("Osaurus", "~/MLXModels"),
    ("Osaurus", "~/Documents/MLXModels"),
    ("Swama", "~/.swama/models"),
    ("MLX Studio", "~/.mlxstudio/models"),
)
"""Default folders. All of them contain `NAME` or `ORG/NAME` folders, as `models.roots` expects."""


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of another program with `models` models; `served` if it is one of the `models.roots`."""

    program: str
    path: str
    models: int
    served: bool


def find_stores(config: Path) -> list[Store]:
    """Return the folders of other programs that contain MLX models.

    Raises:
        CliError: the configuration is invalid.
    """
    roots = {_resolve(root) for root in config_file.load(config).models.roots}
    stores: dict[Path, Store] = {}
    for program, path in _candidates():
        resolved = _resolve(path)
        if path.is_absolute() and resolved not in stores and (count := _count_models(resolved)):
            stores[resolved] = Store(program=program, path=str(path), models=count, served=resolved in roots)
    return list(stores.values())


def add_stores(config: Path, stores: Iterable[Store], client: Client) -> bool:
    """Add folders to `models.roots`; return whether a running daemon serves their models now.

    Raises:
        CliError: the configuration is invalid or cannot be changed.
    """
    from osaurusctl import config_edit  # noqa: PLC0415 - importing tomlkit is slow

    roots = [*config_file.load(config).models.roots, *(store.path for store in stores)]
    config_edit.set_key(config, "models.roots", json.dumps(roots, ensure_ascii=False))
    try:
        client.reload()
    except DaemonNotRunning:
        return False
    return True


def offer(config: Path, client: Client, output: Output) -> list[Store]:
    """Ask whether to add each folder that is not served yet. Add the chosen ones, and return them."""
    chosen = [
        store
        for store in find_stores(config)
        if not store.served and output.confirm(f"Serve the {describe(store)}? The folder is not changed.")
    ]
    if chosen:
        report_added(chosen, add_stores(config, chosen, client), output)
    return chosen


def report_added(stores: list[Store], serving: bool, output: Output) -> None:
    for store in stores:
        output.note(f"{store.path} added to `models.roots`")
    output.note('run "osaurusctl ls" to list the models' if serving else "the daemon uses it when it starts")


def describe(store: Store) -> str:
    """Describe a folder: `3 models of LM Studio in /Users/me/.lmstudio/models`."""
    return f"{store.models} {'model' if store.models == 1 else 'models'} of {store.program} in {store.path}"


def _candidates() -> Iterator[tuple[str, Path]]:
    for path in lm_studio.folders():
        yield "LM Studio", path
    if folder := os.environ.get("OSU_MODELS_DIR"):
        yield "Osaurus", Path(folder)
    for program, folder in _FIXED:
        yield program, Path(folder).expanduser()


def _resolve(path: Path | str) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def _count_models(folder: Path) -> int:
    """Count the models in `NAME` and `ORG/NAME` folders; GGUF files do not count."""
    try:
        candidates = list(chain(folder.glob("*/config.json"), folder.glob("*/*/config.json")))
        return sum(any(config.parent.glob("*.safetensors")) for config in candidates)
    except OSError:
        return 0
