"""Types for paired hosts: of the admin API, and of the connections between daemons."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from osaurusd.wire.diagnosis import Installation

MAX_NAME_LENGTH = 63

# Safe on a command line, and in a list that is separated by commas.
HostName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=MAX_NAME_LENGTH)]


class HostRoute(StrEnum):
    """Paths of the admin API."""

    HOSTS = "/v0/hosts"
    CODE = "/v0/hosts/code"
    CHECK = "/v0/hosts/check"
    REMOVE = "/v0/hosts/remove"


class ControlRoute(StrEnum):
    """Paths that a daemon serves to paired hosts."""

    FACTS = "/v0/host"
    ECHO = "/v0/host/echo"
    LISTEN = "/v0/host/listen"


class PairingCode(msgspec.Struct, frozen=True, kw_only=True):
    """A code that another host needs to pair with this one.

    Attributes:
        urls: where this host accepts paired hosts.
        fingerprint: SHA-256 of this host's certificate.
        seconds: how long the code is valid.
    """

    code: str
    urls: list[str]
    fingerprint: str
    seconds: float


class AddHostRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pair with the host at `url`.

    Attributes:
        name: what this host calls the other one.
        code: from `osaurusctl host code` on the other host.
        link_address: the other host's address on the fast network; null to let it determine the address.
        own_name: what the other host calls this one; null for the name of this machine.
    """

    name: HostName
    url: str
    code: str
    link_address: str | None = None
    own_name: HostName | None = None


class RemoveHostRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stop trusting a host."""

    name: str


class CheckHostsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Check the connection to a host, or to all hosts if `name` is null."""

    name: str | None = None


class HostInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A paired host.

    Attributes:
        url: empty if the host does not accept connections.
        fingerprint: SHA-256 of its certificate.
        added_at: when it was paired, in Unix seconds.
    """

    name: str
    url: str
    fingerprint: str
    link_address: str | None
    added_at: float


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a host tells a paired one about itself.

    Attributes:
        system: operating system with its version and build.
        architecture: of the processor, as `uname` names it.
        chip: of the processor; empty if unknown.
        time: Unix seconds.
        memory_bytes: of the machine.
        free_bytes: memory that is not in use.
        lendable_bytes: memory that models of other hosts may use now.
        link_address: its address for tensors.
        peer_address: the address of the host that asks, as this one sees it.
        rdma_devices: names of RDMA devices.
        rdma: whether RDMA is enabled: `enabled`, `disabled` or `unavailable`.
        backend, rdma_device: `distributed.backend` and `distributed.rdma_device`.
    """

    installation: Installation
    system: str
    architecture: str
    chip: str
    time: float
    memory_bytes: int
    free_bytes: int
    lendable_bytes: int
    link_address: str
    peer_address: str
    rdma_devices: list[str] = []
    rdma: str = "unavailable"
    backend: Literal["ring", "jaccl"] = "ring"
    rdma_device: str = ""


class ListenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Accept one connection on the link address, or make one from there.

    Attributes:
        address: the link address; null for the configured one.
        connect_to: an IP address with a port; null to accept a connection.
    """

    address: str | None = None
    connect_to: str | None = None


class ListenReply(msgspec.Struct, frozen=True, kw_only=True):
    """Where a connection is accepted, or why the connection failed."""

    port: int | None = None
    failure: str | None = None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A version that differs between this host and the other one; null means that it is not installed."""

    name: str
    here: str | None
    there: str | None


class HostCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The result of checking one host.

    Attributes:
        problems: what prevents models that run on both hosts, one line each.
        warnings: what may slow them down or cause failures.
        facts: null if the host cannot be reached.
        latency_seconds: the median of several round trips over the control connection.
        bytes_per_second: of a transfer from the other host's link address to this one's; null if it failed.
        clock_seconds: by how much the other host's clock is ahead.
        link_address: this host's address on the network to the other one.
        differences: in versions.
    """

    name: str
    url: str
    problems: list[str] = []
    warnings: list[str] = []
    facts: HostFacts | None = None
    latency_seconds: float | None = None
    bytes_per_second: float | None = None
    clock_seconds: float | None = None
    link_address: str | None = None
    differences: list[Difference] = []
