"""What this host states about itself to the leader of a group."""

import platform
import sys
from functools import cache
from importlib import metadata

from osaurusd import __version__
from osaurusd.wire.placement import Backend, HostFacts, Versions

_PACKAGES = ("mlx", "mlx-lm")


def describe_host(
    memory_bytes: int, *, link_address: str | None, backend: Backend, name: str | None = None
) -> HostFacts:
    """Describe this host.

    Args:
        memory_bytes: memory for a rank.
        link_address: its address on the network between the ranks.
        backend: `distributed.backend`.
        name: how the leader calls it; None for the leader.
    """
    return HostFacts(
        name=name,
        memory_bytes=memory_bytes,
        versions=installed_versions(backend),
        link_address=link_address,
        backend=backend,
        device="gpu" if sys.platform == "darwin" else "cpu",
    )


@cache
def installed_versions(backend: Backend) -> Versions:
    """Return the versions that all ranks must share. RDMA also requires the same build of the system."""
    versions = {"osaurusd": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if backend == "jaccl":
        versions["system"] = platform.platform()
    return versions
