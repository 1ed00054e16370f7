import click

from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import size, table
from osaurusctl.output import Output
from osaurusd.wire.admin import ModelInfo, WorkerState

_IN_MEMORY = {WorkerState.STARTING: "loading", WorkerState.READY: "loaded", WorkerState.STOPPING: "unloading"}


@click.command("ls", cls=Command)
@click.pass_obj
def command(output: Output) -> None:
    """List the models on this machine."""
    models = connect().models()
    output.show(models, _describe(models) if models else "")
    if not models:
        output.note("no models yet; `osaurusctl import PATH` brings one in")


def _describe(models: list[ModelInfo]) -> str:
    rows = [("NAME", "SIZE", "QUANT", "CONTEXT", "STATE", "REPO", "REASON"), *map(_row, models)]
    if not any(model.reason for model in models):
        rows = [row[:-1] for row in rows]
    return table(rows)


def _row(model: ModelInfo) -> tuple[str, ...]:
    state = _IN_MEMORY[model.worker.state] if model.worker else str(model.state)
    context = str(model.context_length) if model.context_length else "-"
    return model.name, size(model.bytes), model.quantization or "-", context, state, model.repo, model.reason or ""
