"""Commands for the models in memory: list, watch, load, unload, pin."""

import shutil
import sys
import time
from typing import Any

import click

from osaurusctl import completion, progress
from osaurusctl.client import Client, connect
from osaurusctl.command import Command, Duration, exit_on_interrupt
from osaurusctl.errors import CliError
from osaurusctl.formatting import fit_columns, format_duration, format_table
from osaurusctl.output import Output, is_terminal
from osaurusctl.ranks import format_ranks
from osaurusd.wire.admin import DaemonStatus, UnloadReply, WorkerInfo, WorkerState
from osaurusd.wire.placement import SplitSetting
from osaurusd.wire.residency import LoadPhases
from osaurusd.wire.sizes import format_bytes

_HEADER = ("MODEL", "STATE", "MEMORY", "RESIDENT", "IN FLIGHT", "TOK/S", "PINNED", "UNLOADS IN", "DEVICE", "PID")
_DROP = ("PID", "DEVICE", "RESIDENT", "TOK/S", "PINNED", "IN FLIGHT", "UNLOADS IN")


@click.command("ps", cls=Command, examples=["osaurusctl ps"])
@click.pass_obj
def ps(output: Output) -> None:
    """List models in memory, queued or failed"""
    workers = connect().workers()
    output.show(workers, _format_workers(workers, output.width) if workers else "")
    if not workers:
        output.note('no model is loaded; run "osaurusctl load NAME" or send a request to load one')


@click.command("top", cls=Command, examples=["osaurusctl top --interval 5"])
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=1,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between updates",
)
@click.pass_obj
def top(output: Output, interval: float) -> None:
    """Watch models in memory, updated until Ctrl-C

    With --json, print the status once.
    """
    client = connect()
    status = client.status()
    if output.json:
        output.show(status, "")
        return
    if not is_terminal(sys.stdout):
        raise CliError("standard output is not a terminal", hint='use "osaurusctl ps" instead')
    # Importing rich takes longer than running other commands.
    from rich.live import Live  # noqa: PLC0415

    with exit_on_interrupt(), Live(_render_screen(status), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(_render_screen(client.status()), refresh=True)


@click.command(
    "load",
    cls=Command,
    examples=[
        "osaurusctl load llama-3.2-3b-instruct",
        "osaurusctl load llama-3.2-3b-instruct --keep-alive 1h",
        "osaurusctl load llama-3.3-70b-instruct --hosts mac-2 --split tensor",
    ],
)
@click.argument("name", shell_complete=completion.available_models)
@click.option("--keep-alive", type=Duration(), help="Unload the model after this idle time: 90s, 15m, 1h; -1 for never")
@click.option(
    "--hosts",
    metavar="NAME,...",
    shell_complete=completion.host_names,
    help="Paired hosts that run the model together with this one",
)
@click.option(
    "--split",
    type=click.Choice(["auto", "tensor", "pipeline"]),
    help="Divide each layer over the hosts, or give each some layers",
)
@click.pass_obj
def load(output: Output, name: str, keep_alive: float | None, hosts: str | None, split: SplitSetting | None) -> None:
    """Load a model into memory and wait until it is ready"""
    if split is not None and not hosts:
        raise click.UsageError("--split requires --hosts")
    names = None if hosts is None else [each.strip() for each in hosts.split(",") if each.strip()]
    with progress.spinner(output, f"loading {name}"):
        worker = connect().load(name, keep_alive, names, split)
    seconds = "" if worker.load_seconds is None else f" in {worker.load_seconds:.1f} s"
    device = f" on {worker.device}" if worker.device else ""
    phases = f" ({_format_phases(worker.load_phases)})" if worker.load_phases else ""
    output.show(worker, f"{worker.model} loaded{device}: {format_bytes(worker.needs_bytes)}{seconds}{phases}")


@click.command("unload", cls=Command, examples=["osaurusctl unload llama-3.2-3b-instruct", "osaurusctl unload --all"])
@click.argument("names", metavar="NAME...", nargs=-1, shell_complete=completion.loaded_models)
@click.option("--all", "unload_all", is_flag=True, help="Unload every model that is not pinned")
@click.option("--force", is_flag=True, help="Also unload pinned models and models in use, and abort their requests")
@click.pass_obj
def unload(output: Output, names: tuple[str, ...], unload_all: bool, force: bool) -> None:
    """Unload models and free their memory"""
    if bool(names) == unload_all:
        raise click.UsageError("give either model names or --all")
    unload_models(output, names, force=force)


@click.command("pin", cls=Command, examples=["osaurusctl pin llama-3.2-3b-instruct", "osaurusctl pin"])
@click.argument("name", required=False, shell_complete=completion.available_models)
@click.pass_obj
def pin(output: Output, name: str | None) -> None:
    """Keep a model in memory, or list pinned models

    The daemon loads a pinned model now and at every start, and never evicts it. Without NAME, list the pinned models.
    """
    client = connect()
    reply = client.pins() if name is None else client.pin(name, pinned=True)
    memory = f"{format_bytes(reply.needs_bytes)} of {format_bytes(reply.budget_bytes)}"
    output.show(reply, f"pinned: {', '.join(reply.pinned)} ({memory})" if reply.pinned else "")
    if not reply.pinned:
        output.note('no pinned models; run "osaurusctl pin NAME" to pin one')


@click.command("unpin", cls=Command, examples=["osaurusctl unpin llama-3.2-3b-instruct"])
@click.argument("name", shell_complete=completion.pinned_models)
@click.pass_obj
def unpin(output: Output, name: str) -> None:
    """Remove the pin of a model

    The model stays loaded until it is idle or another model needs its memory.
    """
    reply = connect().pin(name, pinned=False)
    rest = f"; still pinned: {', '.join(reply.pinned)}" if reply.pinned else ""
    output.show(reply, f"{name} unpinned{rest}")


def unload_models(output: Output, names: tuple[str, ...], *, force: bool) -> None:
    """Unload the named models, or without names every model that is not pinned."""
    reply = _unload(connect(), names or (None,), force, output)
    output.show(reply, "\n".join(f"{name} unloaded" for name in reply.unloaded))
    if not reply.unloaded:
        output.note(f"not loaded: {', '.join(names)}" if names else "no model is loaded")


def _unload(client: Client, models: tuple[str | None, ...], force: bool, output: Output) -> UnloadReply:
    unloaded: list[str] = []
    try:
        for model in models:
            unloaded += client.unload(model, force=force).unloaded
    except CliError:
        for name in unloaded:
            output.note(f"{name} unloaded")
        raise
    return UnloadReply(unloaded=unloaded)


def _format_phases(phases: LoadPhases) -> str:
    seconds = {"spawn": phases.spawn_seconds, "imports": phases.import_seconds, "weights": phases.weights_seconds}
    parts = [f"{name} {value:.2f} s" for name, value in seconds.items()]
    return ", ".join(["standby worker", parts[-1]] if phases.standby else parts)


def _format_workers(workers: list[WorkerInfo], width: int | None) -> str:
    table = format_table([_HEADER, *map(_worker_row, workers)], width=width, drop=_DROP)
    exits = [line for worker in workers for line in _last_exit_lines(worker)]
    return "\n".join([table, *format_ranks(workers, width), *(["", "last exits:", *exits] if exits else [])])


def _worker_row(worker: WorkerInfo) -> tuple[str, ...]:
    return (
        worker.model,
        worker.state,
        format_bytes(worker.needs_bytes) if worker.needs_bytes else "-",
        format_bytes(worker.memory_bytes) if worker.memory_bytes else "-",
        f"{worker.in_flight} (+{worker.waiting} waiting)" if worker.waiting else str(worker.in_flight),
        f"{worker.tokens_per_second:.1f}" if worker.tokens_per_second else "-",
        "yes" if worker.pinned else "-",
        _unloads_in(worker),
        worker.device or "-",
        "-" if worker.pid is None else str(worker.pid),
    )


def _unloads_in(worker: WorkerInfo) -> str:
    if worker.state is not WorkerState.READY or worker.in_flight:
        return "-"
    if worker.lease is not None:
        return "-"
    return "never" if worker.idle_left_seconds is None else format_duration(worker.idle_left_seconds)


def _last_exit_lines(worker: WorkerInfo) -> list[str]:
    """Return how the previous worker of this model exited, if it crashed."""
    if not worker.last_exit:
        return []
    first, *rest = worker.last_exit.splitlines()
    return [f"{worker.model}: {first}", *(f"  {line}" for line in rest)]


def _render_screen(status: DaemonStatus) -> Any:
    from rich.console import Group  # noqa: PLC0415 - see `top`
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    rows = [list(_HEADER), *(list(_worker_row(worker)) for worker in status.workers)]
    header, *lines = fit_columns(rows, shutil.get_terminal_size().columns, _DROP)
    for name in header:
        table.add_column(name, no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))
    used, budget = status.memory_used_bytes, status.memory_budget_bytes
    exits = [line for worker in status.workers for line in _last_exit_lines(worker)]
    return Group(
        Text(f"osaurusd {status.version}, up {format_duration(status.uptime_seconds)}, {', '.join(status.endpoints)}"),
        Text(f"model memory: {format_bytes(used)} of {format_bytes(budget)}"),
        ProgressBar(total=max(budget, 1), completed=used, width=60),
        Text(),
        table if status.workers else Text("no model is loaded"),
        Text("\n".join(format_ranks(status.workers, shutil.get_terminal_size().columns))),
        Text("\n".join(["", *status.faults, *exits])),
    )
