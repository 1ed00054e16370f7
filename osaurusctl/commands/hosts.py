"""Commands for paired hosts: host code, host add, host ls, host check, host rm."""

import sys
import time

import click

from osaurusctl import completion as complete
from osaurusctl import progress
from osaurusctl.client import connect
from osaurusctl.command import Group, can_prompt, confirm_removal, exit_on_interrupt, needs_confirmation
from osaurusctl.errors import ExitCode
from osaurusctl.formatting import format_duration, format_table, labeled_rows
from osaurusctl.output import Output, is_terminal
from osaurusd.wire.hosts import AddHostRequest, HostCheck, HostInfo
from osaurusd.wire.placement import COMMON_PACKAGES
from osaurusd.wire.sizes import format_bytes

_FINGERPRINT_CHARACTERS = 16


@click.group("host", cls=Group, examples=["osaurusctl host code", "osaurusctl host add studio https://10.0.0.2:8444"])
def host() -> None:
    """Manage the hosts that this one shares models with

    Two hosts are paired once: one shows a code, which you type on the other one. Both then trust each other.
    """


@host.command("code", examples=["osaurusctl host code"])
@click.pass_obj
def host_code(output: Output) -> None:
    """Show a code with which another host can pair

    The code is valid once, for 10 minutes, and replaces an earlier one. It requires `distributed.listen`.
    """
    code = connect().offer_pairing_code()
    output.show(code, code.code)
    for url in code.urls:
        output.note(f"on the other host, run: osaurusctl host add NAME {url}")
    output.note(f"valid for {format_duration(code.seconds)}; the fingerprint of this host is {code.fingerprint}")


@host.command(
    "add",
    examples=[
        "osaurusctl host add studio https://10.0.0.2:8444",
        "osaurusctl host add studio https://10.0.0.2:8444 --link-address 10.1.0.2",
    ],
)
@click.argument("name")
@click.argument("url")
@click.option("--link-address", metavar="IP", help="Address of the other host on the network that carries tensors")
@click.option("--as", "own_name", metavar="NAME", help="What the other host calls this one  [default: its host name]")
@click.pass_obj
def host_add(output: Output, name: str, url: str, link_address: str | None, own_name: str | None) -> None:
    """Pair with the host at URL, and call it NAME

    Prompts for the code that "osaurusctl host code" shows there, or reads it from standard input.
    """
    client = connect()
    code = _ask_for_code(output)
    request = AddHostRequest(name=name, url=url, code=code, link_address=link_address, own_name=own_name)
    added = client.add_host(request)
    output.show(added, f"paired with {added.name} at {added.url} (fingerprint {added.fingerprint})")
    output.note(f'run "osaurusctl host check {added.name}" to find out whether models can run on both hosts')


@host.command("ls", examples=["osaurusctl host ls"])
@click.pass_obj
def host_ls(output: Output) -> None:
    """List the paired hosts"""
    hosts = connect().hosts()
    rows = [("NAME", "URL", "LINK ADDRESS", "FINGERPRINT", "PAIRED"), *map(_host_row, hosts)]
    output.show(hosts, format_table(rows, width=output.width, drop=["PAIRED", "FINGERPRINT"]) if hosts else "")
    if not hosts:
        output.note('no hosts are paired; run "osaurusctl host add NAME URL" to pair with one')


@host.command("check", examples=["osaurusctl host check", "osaurusctl host check studio --json"])
@click.argument("name", required=False, shell_complete=complete.host_names)
@click.pass_obj
def host_check(output: Output, name: str | None) -> None:
    """Check whether models can run on this host and on others together

    Compares versions, and measures the connection. Exits with code 1 if something prevents it.
    """
    client = connect()
    with exit_on_interrupt(), progress.spinner(output, "checking hosts"):
        checks = client.check_hosts(name)
    failed = any(check.problems for check in checks)
    output.show({"ok": not failed, "hosts": checks}, "\n\n".join(map(_describe_check, checks)))
    if not checks:
        output.note('no hosts are paired; run "osaurusctl host add NAME URL" to pair with one')
    if failed:
        raise click.exceptions.Exit(ExitCode.FAILURE)


@host.command("rm", examples=["osaurusctl host rm studio"])
@click.argument("name", shell_complete=complete.host_names)
@click.option("-y", "--yes", is_flag=True, help="Do not prompt for confirmation")
@click.pass_obj
def host_rm(output: Output, name: str, yes: bool) -> None:
    """Stop trusting a host immediately

    Ends the connections between the hosts. The other one keeps trusting this one until you remove it there, too.
    """
    client = connect()
    if needs_confirmation(yes, output):
        confirm_removal(f"models that run on {name} and this host will stop", f"Remove the host {name}?", output)
    removed = client.remove_host(name)
    output.show(removed, f"removed {removed.name}")


def _ask_for_code(output: Output) -> str:
    """Prompt for the code, or read it from standard input. Other users could see it among the arguments."""
    if can_prompt(output):
        output.note("code:")
    elif is_terminal(sys.stdin):
        raise click.UsageError("--json cannot prompt for the code; write it to standard input")
    if code := sys.stdin.readline().strip():
        return code
    raise click.UsageError('no code; run "osaurusctl host code" on the other host for one')


def _host_row(info: HostInfo) -> tuple[str, ...]:
    paired_at = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.added_at))
    fingerprint = f"{info.fingerprint[:_FINGERPRINT_CHARACTERS]}…"
    return info.name, info.url or "-", info.link_address or "automatic", fingerprint, paired_at


def _describe_check(check: HostCheck) -> str:
    rows = [*_measurements(check)]
    rows += labeled_rows("problem", check.problems) if check.problems else []
    rows += labeled_rows("warning", check.warnings) if check.warnings else []
    title = f"{check.name} ({check.url})" if check.url else check.name
    verdict = (
        "cannot run models together with this host" if check.problems else "can run models together with this host"
    )
    return f"{title}: {verdict}\n{format_table([('', *row) for row in rows])}"


def _measurements(check: HostCheck) -> list[tuple[str, str]]:
    facts = check.facts
    if facts is None or check.latency_seconds is None or check.clock_seconds is None:
        return []
    packages = ", ".join(f"{name} {facts.installation.packages.get(name, '-')}" for name in COMMON_PACKAGES)
    differing = [f"{each.name}: {each.here or '-'} here, {each.there or '-'} there" for each in check.differences]
    speed = "" if check.bytes_per_second is None else f", {format_bytes(round(check.bytes_per_second))}/s"
    devices = f" ({', '.join(facts.rdma_devices)})" if facts.rdma_devices else ""
    return [
        ("system", f"{facts.system}, {facts.architecture}"),
        ("versions", f"{packages}, Python {facts.installation.python}"),
        *labeled_rows("differences", differing),
        ("memory", f"{format_bytes(facts.free_bytes)} free, {format_bytes(facts.lendable_bytes)} to lend"),
        ("latency", f"{check.latency_seconds * 1000:.2f} ms"),
        ("link", f"{check.link_address} - {facts.link_address}{speed}"),
        ("clock", f"{check.clock_seconds:+.1f} s"),
        ("RDMA", f"{facts.rdma}{devices}"),
    ]
