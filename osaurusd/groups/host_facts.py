"""What the placement of a model depends on at each host, from what the hosts state about themselves."""

import msgspec

from osaurusd.hosts.registry import Host
from osaurusd.wire.hosts import HostFacts as StatedFacts
from osaurusd.wire.placement import HostFacts, Versions

_PACKAGES = ("osaurusd", "mlx", "mlx-lm")


def from_host(host: Host, stated: StatedFacts) -> HostFacts:
    """Return the facts of a paired host. Its link address is the one that was given when it was added, if any."""
    facts = of_leader(stated, stated.lendable_bytes)
    return msgspec.structs.replace(facts, name=host.name, link_address=host.link_address or facts.link_address)


def of_leader(stated: StatedFacts, memory_bytes: int) -> HostFacts:
    """Return the facts of this host, with the memory that its rank may use."""
    return HostFacts(
        memory_bytes=memory_bytes,
        versions=_versions(stated),
        link_address=stated.link_address,
        backend=stated.backend,
        device="gpu" if stated.system.startswith("macOS") else "cpu",
        rdma_device=stated.rdma_device or (stated.rdma_devices[0] if len(stated.rdma_devices) == 1 else None),
    )


def _versions(stated: StatedFacts) -> Versions:
    """Return the versions that all ranks must share. RDMA also requires the same build of the system."""
    packages = stated.installation.packages
    versions = {name: packages[name] for name in _PACKAGES if name in packages}
    return versions | {"system": stated.system} if stated.backend == "jaccl" else versions
