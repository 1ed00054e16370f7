"""Commands for the models on disk: list, inspect, verify, rename, remove."""

from collections import Counter
from collections.abc import Callable

import click

from osaurusctl import completion, progress
from osaurusctl.client import Client, connect
from osaurusctl.command import Command, confirm_removal, needs_confirmation
from osaurusctl.errors import CliError, ExitCode, Interrupted
from osaurusctl.formatting import format_table
from osaurusctl.model_details import format_age, format_details
from osaurusctl.output import Output
from osaurusd.wire.admin import (
    Availability,
    FileState,
    Leftover,
    ModelInfo,
    Removed,
    RemoveReply,
    VerifyDone,
    WorkerState,
)
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.sizes import format_bytes, format_count

_WORKER_LABELS = {WorkerState.STARTING: "loading", WorkerState.READY: "loaded", WorkerState.STOPPING: "unloading"}
_LOADED = "loaded"
_STATES = [*(state.value for state in Availability), _LOADED]

_SORT_KEYS: dict[str, Callable[[ModelInfo], int | None]] = {
    "size": lambda model: model.bytes,
    "modified": lambda model: model.created,
    "parameters": lambda model: model.parameters,
}
"""Sort keys besides the name; the largest value comes first."""

_LIST_HEADER = ("NAME", "TASK", "SIZE", "PARAMS", "QUANT", "CONTEXT", "STATE", "MODIFIED", "REPO", "REASON")

_LIST_DROP = ("REASON", "REPO", "MODIFIED", "CONTEXT", "QUANT", "PARAMS", "TASK")

_DAMAGED = (FileState.CHANGED, FileState.MISSING)


@click.command("ls", cls=Command, examples=["osaurusctl ls qwen", "osaurusctl ls --sort size"])
@click.argument("pattern", metavar="[FILTER]", required=False)
@click.option(
    "--sort",
    "sort_by",
    type=click.Choice(["name", *_SORT_KEYS]),
    default="name",
    show_default=True,
    help="Sort key; largest or newest first",
)
@click.option("--reverse", is_flag=True, help="Reverse the order")
@click.option("--state", type=click.Choice(_STATES), help="Only list models in this state")
@click.pass_obj
def list_models(output: Output, pattern: str | None, sort_by: str, reverse: bool, state: str | None) -> None:
    """List the models on this machine

    FILTER selects models whose name, repository or alias contains it, ignoring case.
    """
    all_models = connect().models()
    models = [model for model in all_models if _contains(model, pattern or "") and _has_state(model, state)]
    models = _sort(models, sort_by, reverse)
    output.show(models, _format_models(models, output.width) if models else "")
    if not all_models:
        output.note('no models on this machine; run "osaurusctl pull NAME" to download one')
    elif not models:
        output.note('no model matches; run "osaurusctl ls" to list all models')


@click.command("show", cls=Command, examples=["osaurusctl show llama-3.2-3b-instruct"])
@click.argument("name", shell_complete=completion.all_models)
@click.pass_obj
def show(output: Output, name: str) -> None:
    """Show the details of a model"""
    details = connect().details(name)
    output.show(details, format_details(details))


@click.command(
    "alias", cls=Command, examples=["osaurusctl alias fast llama-3.2-3b-instruct", "osaurusctl alias --rm fast"]
)
@click.argument("name", required=False)
@click.argument("target", required=False, shell_complete=completion.all_models)
@click.option("--rm", "removed", metavar="NAME", shell_complete=completion.aliases, help="Remove this alias")
@click.pass_obj
def alias(output: Output, name: str | None, target: str | None, removed: str | None) -> None:
    """Add, remove or list aliases of models

    NAME becomes another name of the model TARGET. Without arguments, list the aliases.
    """
    if removed is not None and name is not None:
        raise click.UsageError("NAME and TARGET cannot be combined with --rm")
    if name is not None and target is None:
        raise click.UsageError("missing argument TARGET, the model that the alias refers to")
    client = connect()
    if removed is not None:
        reply = client.set_alias(removed, None)
        output.show(reply, f"removed alias {reply.alias} of {reply.target}")
    elif name is not None:
        _add_alias(client, name, target, output)
    else:
        _list_aliases(client, output)


@click.command("verify", cls=Command, examples=["osaurusctl verify llama-3.2-3b-instruct"])
@click.argument("name", shell_complete=completion.all_models)
@click.pass_context
def verify(ctx: click.Context, name: str) -> None:
    """Verify the checksums of a model's files

    Exits with code 1 if a file has changed or is missing.
    """
    output = ctx.ensure_object(Output)
    try:
        done = progress.follow(connect().verify(name), output, VerifyDone)
    except KeyboardInterrupt as error:
        raise Interrupted("verification cancelled") from error
    output.show(done, _format_verification(done))
    if any(file.state in _DAMAGED for file in done.files):
        ctx.exit(ExitCode.FAILURE)


@click.command("rm", cls=Command, examples=["osaurusctl rm llama-3.2-3b-instruct", "osaurusctl rm -f old-model"])
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=completion.all_models)
@click.option("-y", "--yes", is_flag=True, help="Do not prompt for confirmation")
@click.option(
    "-f", "--force", is_flag=True, help="Do not prompt, and also remove models in use, aborting their requests"
)
@click.pass_obj
def rm(output: Output, names: tuple[str, ...], yes: bool, force: bool) -> None:
    """Remove models from disk"""
    confirm = needs_confirmation(yes or force, output)
    models = list(dict.fromkeys(names))
    client = connect()
    if confirm:
        planned = client.remove(models, force=force, dry_run=True).removed
        rows = [("NAME", "SIZE", "REPO"), *((each.name, format_bytes(each.bytes), each.repo) for each in planned)]
        confirm_removal(format_table(rows), f"Permanently remove this and free {_total(planned)}?", output)
    reply = client.remove(models, force=force)
    output.show(reply, _format_removal(reply))


@click.command("prune", cls=Command, examples=["osaurusctl prune --yes"])
@click.option("-y", "--yes", is_flag=True, help="Do not prompt for confirmation")
@click.pass_obj
def prune(output: Output, yes: bool) -> None:
    """Remove leftovers of failed downloads and imports

    Downloads that are queued or in progress are kept.
    """
    confirm = needs_confirmation(yes, output)
    client = connect()
    reply = client.prune(dry_run=confirm)
    if confirm and reply.leftovers:
        rows = [
            ("SIZE", "KIND", "PATH"),
            *((format_bytes(each.bytes), each.what, each.path) for each in reply.leftovers),
        ]
        confirm_removal(format_table(rows), f"Permanently remove this and free {_total(reply.leftovers)}?", output)
        reply = client.prune()
    lines = [f"removed {each.path} ({format_bytes(each.bytes)})" for each in reply.leftovers]
    output.show(reply, "\n".join([*lines, f"freed {_total(reply.leftovers)}"]) if lines else "")
    if not lines:
        output.note("nothing to remove")


def _contains(model: ModelInfo, pattern: str) -> bool:
    return any(pattern.casefold() in name.casefold() for name in (model.name, model.repo, *model.aliases))


def _has_state(model: ModelInfo, state: str | None) -> bool:
    return model.worker is not None if state == _LOADED else state in (None, model.state)


def _sort(models: list[ModelInfo], sort_by: str, reverse: bool) -> list[ModelInfo]:
    """Sort the models; those without a value for the sort key come last in either order."""
    models = sorted(models, key=lambda model: model.name.casefold(), reverse=reverse and sort_by == "name")
    if sort_by == "name":
        return models
    values = [(model, _SORT_KEYS[sort_by](model)) for model in models]
    known = [(model, value) for model, value in values if value is not None]
    # Negate instead of reversing, so that models with equal values stay sorted by name.
    known.sort(key=lambda pair: pair[1] if reverse else -pair[1])
    return [model for model, _ in known] + [model for model, value in values if value is None]


def _format_models(models: list[ModelInfo], width: int | None) -> str:
    """Format the list; reasons that do not fit into the table follow below it."""
    rows = [_LIST_HEADER, *(row for model in models for row in _model_rows(model))]
    reasons = [(model.name, reason) for model in models if (reason := _reason(model))]
    if not reasons:
        rows = [row[:-1] for row in rows]
    table = format_table(rows, width=width, drop=_LIST_DROP)
    if not reasons or _LIST_HEADER[-1] in table.splitlines()[0]:
        return table
    return "\n".join([table, "", *(f"{name}: {reason}" for name, reason in reasons)])


def _model_rows(model: ModelInfo) -> list[tuple[str, ...]]:
    """Return the row of a model and a row for each of its aliases."""
    facts = (
        format_count(model.parameters) if model.parameters else "-",
        model.quantization or "-",
        str(model.context_length) if model.context_length else "-",
        _WORKER_LABELS[model.worker.state] if model.worker else str(model.state),
        format_age(model),
    )
    task = f"{model.task}, vision" if model.vision else model.task
    aliases = [(name, task, "-", *facts, f"-> {model.name}", "") for name in model.aliases]
    return [(model.name, task, format_bytes(model.bytes), *facts, model.repo, _reason(model)), *aliases]


def _reason(model: ModelInfo) -> str:
    """Return why a model cannot be served, or not with everything that it was trained for."""
    return model.reason or model.vision_refusal or ""


def _add_alias(client: Client, name: str, target: str | None, output: Output) -> None:
    try:
        reply = client.set_alias(name, target)
    except CliError as error:
        if error.body.code == ErrorCode.NAME_TAKEN:
            error.hint = 'run "osaurusctl ls" to list the names in use'
        raise
    output.show(reply, f"{reply.alias} is now an alias of {reply.target}")


def _list_aliases(client: Client, output: Output) -> None:
    aliases = client.aliases()
    rows = [("ALIAS", "MODEL"), *((each.alias, each.target) for each in aliases)]
    output.show(aliases, format_table(rows) if aliases else "")
    if not aliases:
        output.note('no aliases; run "osaurusctl alias NAME TARGET" to add one')


def _format_verification(done: VerifyDone) -> str:
    problems = [file for file in done.files if file.state is not FileState.INTACT]
    lines = [format_table((file.state, format_bytes(file.bytes), file.name) for file in problems)] if problems else []
    return "\n".join([*lines, f"{done.model}: {_summarize(done)}"])


def _summarize(done: VerifyDone) -> str:
    counts = Counter(file.state for file in done.files)
    files = "file" if len(done.files) == 1 else "files"
    others = [f"{counts[state]} {state}" for state in FileState if state is not FileState.INTACT and counts[state]]
    return ", ".join([f"{counts[FileState.INTACT]} of {len(done.files)} {files} intact", *others])


def _format_removal(reply: RemoveReply) -> str:
    lines = [f"removed {each.name} ({format_bytes(each.bytes)})" for each in reply.removed]
    return "\n".join([*lines, f"freed {_total(reply.removed)}"])


def _total(items: list[Removed] | list[Leftover]) -> str:
    return format_bytes(sum(item.bytes for item in items))
