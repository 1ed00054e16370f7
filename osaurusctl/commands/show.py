import time

import click

from osaurusctl import complete
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import age, labelled, quantity, size, table
from osaurusctl.output import Output
from osaurusd.wire.admin import ModelDetails, ModelInfo, WorkerInfo
from osaurusd.wire.residency import LoadPhases

Rows = list[tuple[str, str]]


@click.command("show", cls=Command)
@click.argument("name", shell_complete=complete.known)
@click.pass_obj
def command(output: Output, name: str) -> None:
    """Show everything that is known of the model NAME."""
    details = connect().details(name)
    output.show(details, _describe(details))


def _describe(details: ModelDetails) -> str:
    model = details.model
    sections = [
        ("", _identity(details)),
        ("model", _nature(details)),
        ("generation defaults", _defaults(details)),
        ("memory", _memory(details)),
        ("worker", _worker(model.worker) if model.worker else []),
        ("files", [(file.name, size(file.bytes)) for file in details.files]),
    ]
    return "\n\n".join(_section(title, rows) for title, rows in sections if rows)


def _section(title: str, rows: Rows) -> str:
    if not title:
        return table(rows)
    return "\n".join([title, *(f"  {line}" for line in table(rows).splitlines())])


def _identity(details: ModelDetails) -> Rows:
    model = details.model
    return [
        ("name", model.name),
        *labelled("aliases", model.aliases),
        ("repo", model.repo),
        ("commit", details.commit or "-"),
        ("licence", details.licence or "-"),
        ("state", f"{model.state}: {model.reason}" if model.reason else model.state),
        ("modified", f"{age(max(0.0, time.time() - model.created))} ago"),
        ("size on disk", size(model.bytes)),
        ("path", model.path),
    ]


def _nature(details: ModelDetails) -> Rows:
    model = details.model
    return [
        ("architecture", model.architecture or "-"),
        ("quantization", model.quantization or "-"),
        ("parameters", quantity(model.parameters) if model.parameters else "-"),
        ("context length", _tokens(model)),
        ("tools", _yes_no(details.tools)),
        ("reasoning", _yes_no(details.reasoning)),
        ("vision", _yes_no(details.vision)),
    ]


def _defaults(details: ModelDetails) -> Rows:
    values = {"temperature": details.temperature, "top_p": details.top_p}
    return [(name, "-" if value is None else f"{value:g}") for name, value in values.items()]


def _memory(details: ModelDetails) -> Rows:
    each, full = details.kv_bytes_per_token, details.full_context_bytes
    return [
        ("weights", size(details.weights_bytes)),
        ("a token of context", "-" if each is None else size(each)),
        ("weights and full context", "-" if full is None else size(full)),
    ]


def _worker(worker: WorkerInfo) -> Rows:
    return [
        ("state", worker.state),
        ("memory", size(worker.memory_bytes)),
        ("device", worker.device or "-"),
        ("pid", "-" if worker.pid is None else str(worker.pid)),
        ("in flight", str(worker.in_flight)),
        *(_load(worker.load_phases) if worker.load_phases else []),
    ]


def _load(phases: LoadPhases) -> Rows:
    first = phases.first_token_seconds
    return [
        ("load: spawn", "none, from a spare worker" if phases.spare else f"{phases.spawn_seconds:.2f} s"),
        ("load: imports", "none, from a spare worker" if phases.spare else f"{phases.import_seconds:.2f} s"),
        ("load: weights", f"{phases.weights_seconds:.2f} s"),
        ("load: first token", "-" if first is None else f"{first:.2f} s"),
    ]


def _tokens(model: ModelInfo) -> str:
    return f"{model.context_length} tokens" if model.context_length else "-"


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
