"""Commands that take the daemon out of service without failing requests, and back: drain, undrain."""

import time
from collections.abc import Callable

import click

from osaurusctl import progress
from osaurusctl.client import Client, connect
from osaurusctl.command import Command, Duration, exit_on_interrupt
from osaurusctl.errors import CliError
from osaurusctl.formatting import format_duration
from osaurusctl.output import Output
from osaurusd.wire.drain import DrainStatus

_POLL_SECONDS = 0.2


@click.command("drain", cls=Command, examples=["osaurusctl drain --wait", "osaurusctl drain --wait --timeout 5m"])
@click.option("--wait", is_flag=True, help="Wait until the last request has finished")
@click.option(
    "--timeout",
    type=Duration(),
    help="With --wait: give up after this time, and keep draining: 90s, 5m; -1 for never  [default: never]",
)
@click.pass_obj
def drain(output: Output, wait: bool, timeout: float | None) -> None:
    """Finish running requests and reject new ones

    GET /health/ready returns 503, so that routers send requests to other hosts. Downloads continue. The daemon stays
    drained across restarts, until "osaurusctl undrain".
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout requires --wait")
    client = connect()
    status = client.set_draining(draining=True)
    if wait:
        with exit_on_interrupt(), progress.spinner(output, "waiting for running requests") as describe:
            status = _wait_until_drained(client, timeout, describe)
    output.show(status, f'draining: {_describe_requests(status)}; new ones are rejected until "osaurusctl undrain"')


@click.command("undrain", cls=Command, examples=["osaurusctl undrain"])
@click.pass_obj
def undrain(output: Output) -> None:
    """End draining and accept requests again"""
    status = connect().set_draining(draining=False)
    output.show(status, "the daemon accepts requests")


def describe_drain(status: DrainStatus) -> str:
    """Describe a daemon that drains: since when, and what still runs."""
    since = "" if status.since is None else f"for {format_duration(max(time.time() - status.since, 0))}; "
    return since + _describe_requests(status)


def _describe_requests(status: DrainStatus) -> str:
    running = {0: "no request is", 1: "1 request is"}.get(status.requests, f"{status.requests} requests are")
    return f"{running} running"


def _wait_until_drained(client: Client, timeout: float | None, describe: Callable[[str], None]) -> DrainStatus:
    deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
    while (status := client.drain_status()).requests:
        describe(f"waiting for {status.requests} running request(s)")
        if not status.draining:
            raise CliError('draining was ended by "osaurusctl undrain" while requests were running', code="undrained")
        if deadline is not None and time.monotonic() >= deadline:
            raise CliError(
                f"{status.requests} request(s) are still running after {timeout:g} s; the daemon keeps draining",
                hint='run "osaurusctl drain --wait" to wait longer, or "osaurusctl undrain" to accept requests again',
                code="not_drained",
            )
        time.sleep(_POLL_SECONDS)
    return status
