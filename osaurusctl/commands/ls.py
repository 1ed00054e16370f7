import time
from collections.abc import Callable

import click

from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import age, quantity, size, table
from osaurusctl.output import Output
from osaurusd.wire.admin import ModelInfo, ModelState, WorkerState

_IN_MEMORY = {WorkerState.STARTING: "loading", WorkerState.READY: "loaded", WorkerState.STOPPING: "unloading"}
_LOADED = "loaded"
_STATES = [*(state.value for state in ModelState), _LOADED]

_NUMBERS: dict[str, Callable[[ModelInfo], int | None]] = {
    "size": lambda model: model.bytes,
    "modified": lambda model: model.created,
    "parameters": lambda model: model.parameters,
}
"""What models are sorted by, the most first."""

_HEADER = ("NAME", "SIZE", "PARAMS", "QUANT", "CONTEXT", "STATE", "MODIFIED", "REPO", "REASON")


@click.command("ls", cls=Command)
@click.argument("text", metavar="[FILTER]", required=False)
@click.option(
    "--sort",
    "by",
    type=click.Choice(["name", *_NUMBERS]),
    default="name",
    show_default=True,
    help="What to sort by; numbers from the largest, times from the newest.",
)
@click.option("--reverse", is_flag=True, help="Turn the order round.")
@click.option("--state", type=click.Choice(_STATES), help="Only models in this state.")
@click.pass_obj
def command(output: Output, text: str | None, by: str, reverse: bool, state: str | None) -> None:
    """List the models on this machine.

    With FILTER only those whose name, repo or alias contains it.
    """
    everything = connect().models()
    models = [model for model in everything if _contains(model, text or "") and _is(model, state)]
    models = _ordered(models, by, reverse)
    output.show(models, _describe(models) if models else "")
    if not everything:
        output.note("no models yet; `osaurusctl pull NAME` downloads one")
    elif not models:
        output.note("no model is like that; `osaurusctl ls` lists them all")


def _contains(model: ModelInfo, text: str) -> bool:
    return any(text.casefold() in name.casefold() for name in (model.name, model.repo, *model.aliases))


def _is(model: ModelInfo, state: str | None) -> bool:
    return model.worker is not None if state == _LOADED else state in (None, model.state)


def _ordered(models: list[ModelInfo], by: str, reverse: bool) -> list[ModelInfo]:
    """Sorted; those of which the number is not known come last either way."""
    models = sorted(models, key=lambda model: model.name.casefold(), reverse=reverse and by == "name")
    if by == "name":
        return models
    numbers = [(model, _NUMBERS[by](model)) for model in models]
    known = [(model, number) for model, number in numbers if number is not None]
    # Negated rather than reversed: models of equal numbers stay in the order of their names.
    known.sort(key=lambda pair: pair[1] if reverse else -pair[1])
    return [model for model, _ in known] + [model for model, number in numbers if number is None]


def _describe(models: list[ModelInfo]) -> str:
    rows = [_HEADER, *(row for model in models for row in _rows(model))]
    if not any(model.reason for model in models):
        rows = [row[:-1] for row in rows]
    return table(rows)


def _rows(model: ModelInfo) -> list[tuple[str, ...]]:
    """The model's row, and below it one for each alias, which takes no space of its own."""
    facts = (
        quantity(model.parameters) if model.parameters else "-",
        model.quantization or "-",
        str(model.context_length) if model.context_length else "-",
        _IN_MEMORY[model.worker.state] if model.worker else str(model.state),
        f"{age(max(0.0, time.time() - model.created))} ago",
    )
    aliases = [(alias, "-", *facts, f"-> {model.name}", "") for alias in model.aliases]
    return [(model.name, size(model.bytes), *facts, model.repo, model.reason or ""), *aliases]
