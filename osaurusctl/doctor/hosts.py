"""Checks of the connections to paired hosts."""

from collections.abc import Iterator

from osaurusctl.doctor.check import Check, Context, failure, ok, warning

_NAME = "hosts"


def check_hosts(context: Context) -> Iterator[Check]:
    """Check whether this host accepts others, and whether the paired ones respond."""
    if context.diagnosis is None:
        return
    hosts = context.diagnosis.hosts
    if hosts.fault is not None:
        yield failure(_NAME, hosts.fault, "the daemon retries; correct `distributed.listen` if the address is wrong")
    elif hosts.listen:
        yield ok(_NAME, f"paired hosts can connect to {', '.join(hosts.endpoints)}")
    for name, reason in hosts.unreachable.items():
        yield warning(_NAME, f"{name} is unreachable: {reason}", f'start it, or run "osaurusctl host rm {name}"')
    for name, reason in hosts.unusable_links.items():
        yield failure(
            _NAME,
            f"the link address of {name} is unusable: {reason}",
            "set `distributed.link_address` there to an address of a private network",
        )
    responding = hosts.hosts - len(hosts.unreachable)
    if responding:
        yield ok(_NAME, f"{responding} of {hosts.hosts} paired hosts respond")
