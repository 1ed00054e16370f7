"""The hosts over which a model may run, from what they state about themselves."""

from typing import Literal

import msgspec

from osaurusd.hosts.registry import Host
from osaurusd.wire.hosts import HostFacts
from osaurusd.wire.placement import COMMON_PACKAGES, Backend, Versions


class CandidateHost(msgspec.Struct, frozen=True, kw_only=True):
    """What the placement of a model depends on at one host.

    Attributes:
        name: the paired host; None for this host, the leader.
        memory_bytes: memory for a rank.
        link_address: the address that the other ranks connect to.
        device: what its workers compute on.
        rdma_device: what connects it to the other host with RDMA; None if there is none, or it is not known which.
    """

    memory_bytes: int
    versions: Versions
    name: str | None = None
    link_address: str | None = None
    backend: Backend = "ring"
    device: Literal["cpu", "gpu"] = "gpu"
    rdma_device: str | None = None


def from_host(host: Host, stated: HostFacts) -> CandidateHost:
    """Return the facts of a paired host. Its link address is the one that was given when it was added, if any."""
    facts = of_leader(stated, stated.lendable_bytes)
    return msgspec.structs.replace(facts, name=host.name, link_address=host.link_address or facts.link_address)


def of_leader(stated: HostFacts, memory_bytes: int) -> CandidateHost:
    """Return the facts of this host, with the memory that its rank may use."""
    return CandidateHost(
        memory_bytes=memory_bytes,
        versions=_versions(stated),
        link_address=stated.link_address,
        backend=stated.backend,
        device="gpu" if stated.system.startswith("macOS") else "cpu",
        rdma_device=stated.rdma_device or (stated.rdma_devices[0] if len(stated.rdma_devices) == 1 else None),
    )


def _versions(stated: HostFacts) -> Versions:
    """Return the versions that all ranks must share. RDMA also requires the same build of the system."""
    packages = stated.installation.packages
    versions = {name: packages[name] for name in COMMON_PACKAGES if name in packages}
    return versions | {"system": stated.system} if stated.backend == "jaccl" else versions
