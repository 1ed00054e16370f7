"""Commands for the configuration, API keys and shell completion."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from osaurusctl import completion as complete
from osaurusctl import config_file, process, stores
from osaurusctl.client import connect
from osaurusctl.command import SHELLS, Command, Group, can_prompt
from osaurusctl.config_file import Setting
from osaurusctl.errors import RESTART
from osaurusctl.formatting import format_table, labeled_rows
from osaurusctl.output import Output
from osaurusctl.stores import Store
from osaurusd.config import known_keys
from osaurusd.wire import paths


def _complete_key(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return complete.matching(known_keys(), incomplete)


@click.group(
    "config",
    cls=Group,
    examples=["osaurusctl config get server.port", "osaurusctl config set default_model llama-3.2-3b-instruct"],
)
def config() -> None:
    """Show and change the configuration

    Works without a running daemon. A running daemon applies changes after "osaurusctl reload".
    """


@config.command("path", examples=["osaurusctl config path"])
@click.pass_obj
def config_path(output: Output) -> None:
    """Print the path of the configuration file"""
    path = _config_path()
    output.show({"path": str(path), "exists": path.exists()}, str(path))


@config.command("check", examples=["osaurusctl config check"])
@click.pass_obj
def config_check(output: Output) -> None:
    """Validate the configuration"""
    path = _config_path()
    config_file.load(path)
    exists = path.exists()
    text = f"{path} is valid" if exists else f"{path} does not exist; the defaults apply"
    output.show({"path": str(path), "exists": exists}, text)


@config.command("get", examples=["osaurusctl config get", "osaurusctl config get server.port"])
@click.argument("key", required=False, shell_complete=_complete_key)
@click.pass_obj
def config_get(output: Output, key: str | None) -> None:
    """Print the value of a key, or of all keys

    Without KEY, print every key with its value and the source of the value.
    """
    if key is None:
        settings = config_file.list_settings(_config_path())
        rows = [("KEY", "VALUE", "SOURCE"), *((each.key, _to_toml(each.value), _source(each)) for each in settings)]
        output.show(settings, format_table(rows, width=output.width, drop=["SOURCE"]))
        return
    setting = config_file.get_setting(_config_path(), key)
    output.show(setting, setting.value if isinstance(setting.value, str) else _to_toml(setting.value, unset=""))
    if setting.value is None:
        output.note(f"{key} is not set")
    _warn_if_overridden(key, output)


@config.command(
    "set",
    # `-1` is a value.
    context_settings={"ignore_unknown_options": True},
    examples=[
        "osaurusctl config set default_model llama-3.2-3b-instruct",
        "osaurusctl config set residency.budget_bytes 24GB",
        "osaurusctl config set residency.keep_alive_seconds 15m",
        "osaurusctl config set models.roots ~/.lmstudio/models",
    ],
)
@click.argument("key", shell_complete=_complete_key)
@click.argument("value")
@click.pass_obj
def config_set(output: Output, key: str, value: str) -> None:
    """Set a key

    VALUE is TOML, a string, a size such as 8GB, or a duration such as 15m. A single string is enough for a list.
    Comments and formatting of the file are kept. An invalid value leaves the file unchanged.
    """
    from osaurusctl import config_edit  # noqa: PLC0415 - importing tomlkit is slow

    path = _config_path()
    result = config_edit.set_key(path, key, value)
    output.show({"path": str(path), "key": key, "value": result}, f"{key} = {_to_toml(result)}")
    _note_next_steps(key, output)


@config.command("unset", examples=["osaurusctl config unset server.port"])
@click.argument("key", shell_complete=_complete_key)
@click.pass_obj
def config_unset(output: Output, key: str) -> None:
    """Remove a key, so that its default applies"""
    from osaurusctl import config_edit  # noqa: PLC0415 - importing tomlkit is slow

    path = _config_path()
    removed = config_edit.unset_key(path, key)
    output.show({"path": str(path), "key": key, "removed": removed}, f"{key} removed" if removed else "")
    if removed:
        _note_next_steps(key, output)
    else:
        output.note(f"{key} is not set")


@config.command("discover", examples=["osaurusctl config discover", "osaurusctl config discover --yes"])
@click.option("-y", "--yes", is_flag=True, help="Add all folders without asking")
@click.pass_obj
def config_discover(output: Output, yes: bool) -> None:
    """Find models of other programs, such as LM Studio, and serve them

    Adds their folders to `models.roots` if you agree. The daemon reads these folders and never changes them.
    """
    path = _config_path()
    found = stores.find_stores(path)
    new = [store for store in found if not store.served]
    rows = [("PROGRAM", "MODELS", "SERVED", "PATH"), *map(_store_row, found)]
    output.show(found, format_table(rows) if found else "")
    if yes and new:
        stores.report_added(new, stores.add_stores(path, new, connect()), output)
    elif new and can_prompt(output):
        stores.offer(path, connect(), output)
    elif not found:
        output.note("no models of other programs found")
    elif new:
        output.note('run "osaurusctl config discover --yes" to serve them')


@click.command("reload", cls=Command, examples=["osaurusctl reload"])
@click.pass_obj
def reload(output: Output) -> None:
    """Apply configuration changes to the running daemon

    Lists the changed keys that are now in effect, and those that need a restart.
    """
    reply = connect().reload()
    rows = [
        *(labeled_rows("in effect", reply.applied) if reply.applied else []),
        *(labeled_rows("needs restart", reply.needs_restart) if reply.needs_restart else []),
    ]
    output.show(reply, format_table(rows) if rows else "")
    if reply.needs_restart:
        output.note(f"{RESTART} to apply the rest")
    elif not rows:
        output.note("no changes")


@click.group("key", cls=Group, examples=["osaurusctl key create laptop", "osaurusctl key ls"])
def key() -> None:
    """Manage API keys for clients that connect over TCP

    Keys are required when other machines can connect, and everywhere with `server.require_key`.
    """


@key.command("create", examples=["osaurusctl key create laptop"])
@click.argument("name", required=False)
@click.pass_obj
def key_create(output: Output, name: str | None) -> None:
    """Create a key and print it; it is shown only once

    NAME describes the user or the device of the key.
    """
    new_key = connect().create_key(name)
    output.show(new_key, new_key.key)
    output.note(
        f'key id {new_key.id}; the key is not shown again. Run "osaurusctl key revoke {new_key.id}" to revoke it.'
    )


@key.command("ls", examples=["osaurusctl key ls"])
@click.pass_obj
def key_ls(output: Output) -> None:
    """List the keys and when each was last used"""
    keys = connect().api_keys()
    rows = [
        ("ID", "NAME", "CREATED", "LAST USED"),
        *((each.id, each.name or "-", _format_time(each.created), _format_time(each.last_used)) for each in keys),
    ]
    output.show(keys, format_table(rows, width=output.width, drop=["CREATED", "LAST USED"]) if keys else "")
    if not keys:
        output.note('no API keys; run "osaurusctl key create" to create one')


@key.command("revoke", examples=["osaurusctl key revoke 4f1a2b3c"])
@click.argument("key_id", metavar="ID", shell_complete=complete.key_ids)
@click.pass_obj
def key_revoke(output: Output, key_id: str) -> None:
    """Revoke a key

    New requests with the key are rejected; running requests finish.
    """
    revoked = connect().revoke_key(key_id)
    output.show(revoked, f"revoked key {revoked.id}{f' ({revoked.name})' if revoked.name else ''}")


@click.command(
    "completion",
    cls=Command,
    examples=[
        "osaurusctl completion zsh > ~/.zfunc/_osaurusctl",
        'eval "$(osaurusctl completion bash)"',
        "osaurusctl completion fish | source",
    ],
)
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell

    SHELL is bash, zsh or fish.
    """
    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise click.UsageError(f"no completion available for {shell}")
    script = completion_class(ctx.find_root().command, {}, "osaurusctl", "_OSAURUSCTL_COMPLETE").source()
    ctx.ensure_object(Output).show({"shell": shell, "script": script}, script)


def _store_row(store: Store) -> tuple[str, ...]:
    return (store.program, str(store.models), "yes" if store.served else "no", store.path)


def _config_path() -> Path:
    return paths.resolve().config_file


def _to_toml(value: Any, unset: str = "none") -> str:
    """Format a value. All values of the configuration look the same in JSON and TOML."""
    return unset if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _source(setting: Setting) -> str:
    return f"{setting.source} ({setting.variable})" if setting.variable else setting.source


def _note_next_steps(key: str, output: Output) -> None:
    _warn_if_overridden(key, output)
    with contextlib.suppress(OSError):
        if process.lock_owner(paths.resolve().lock) is not None:
            output.note('run "osaurusctl reload" to apply the change to the running daemon')


def _warn_if_overridden(key: str, output: Output) -> None:
    if variable := config_file.overriding_variable(key):
        output.note(f"the environment variable {variable} overrides the file")


def _format_time(seconds: int | None) -> str:
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
