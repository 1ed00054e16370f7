"""The configuration section about models that run on several hosts: `[distributed]`."""

from typing import Annotated, Literal

import msgspec

from osaurusd.config.keys import Section, seconds, setting, size


class DistributedModel(Section, frozen=True):
    """`[distributed.models."NAME"]`: where a model runs.

    Attributes:
        hosts: the names of paired hosts that run the model together with this one.
        split: `tensor` divides each layer, `pipeline` gives each host some layers, `auto` chooses.
    """

    hosts: list[str]
    split: Literal["auto", "tensor", "pipeline"] = "auto"


class Distributed(Section, frozen=True):
    """`[distributed]`: hosts that share models."""

    listen: Annotated[
        str,
        setting(
            "IP address and port for paired hosts, such as `10.0.0.1:8444`, or `0.0.0.0:8444` for all addresses. "
            "Empty: accept none",
            restart=True,
        ),
    ] = ""
    link_address: Annotated[
        str,
        setting(
            "IPv4 address of this host on the private network that carries tensors. "
            "Empty: the address over which the hosts are connected"
        ),
    ] = ""
    lend_bytes: Annotated[int, size("Memory that models of paired hosts may use on this host. 0: none", ge=0)] = 0
    backend: Annotated[
        Literal["ring", "jaccl"],
        setting("How ranks exchange tensors. `ring`: TCP; `jaccl`: RDMA over Thunderbolt 5, which is experimental"),
    ] = "ring"
    rdma_device: Annotated[
        str, setting("RDMA device that is connected to the other host, such as `rdma_en3`. Empty: the only one")
    ] = ""
    start_timeout_seconds: Annotated[
        float, seconds("How long the ranks of a model may take to get ready, without downloads of its files", gt=0)
    ] = 120.0
    stream_timeout_seconds: Annotated[
        float,
        seconds("A connection between hosts that is silent for this long has failed", gt=0, le=3600),
    ] = 30.0
    hang_timeout_seconds: Annotated[
        float, seconds("A rank that makes no progress for this long ends its model on all hosts", gt=0)
    ] = 60.0
    models: Annotated[
        dict[str, DistributedModel],
        setting("Models that run over several hosts: by name, the other `hosts` and the `split`"),
    ] = msgspec.field(default_factory=dict)
