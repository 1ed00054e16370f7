"""What the network carries if a model is split over several hosts, by the shape of the model."""

from dataclasses import dataclass

ACTIVATION_BYTES = 2
"""Activations are exchanged in 16 bits."""


@dataclass(frozen=True)
class Shape:
    """The shape of a model.

    Attributes:
        parameters: in billions.
        active: parameters that each token uses, in billions.
        hidden: width of the activations between layers.
        kv_width: width of keys and values together, per layer.
    """

    name: str
    parameters: float
    active: float
    layers: int
    hidden: int
    kv_width: int

    def weights_bytes(self, bits: int) -> float:
        """Return the size of quantized weights; each group of 64 has a scale and a bias of 16 bits."""
        return self.parameters * 1e9 * (bits + 0.5) / 8

    def bytes_read(self, bits: int) -> float:
        """Return how much of the weights a token reads."""
        return self.weights_bytes(bits) * self.active / self.parameters

    @property
    def kv_bytes_per_token(self) -> int:
        return self.layers * self.kv_width * ACTIVATION_BYTES


SHAPES = (
    Shape("8B (Llama 3.1)", 8.0, 8.0, 32, 4096, 2048),
    Shape("32B (Qwen 3)", 32.8, 32.8, 64, 5120, 2048),
    Shape("70B (Llama 3.3)", 70.6, 70.6, 80, 8192, 2048),
    Shape("235B, mixture of experts (Qwen 3)", 235.0, 22.0, 94, 4096, 1024),
)


@dataclass(frozen=True)
class Traffic:
    """What each token costs.

    Attributes:
        exchanges: messages that must arrive one after the other, per forward pass.
        bytes_per_token: what the busiest host sends for each token.
        bytes_per_layer: the part of it for one layer; 0 if what is sent does not depend on the number of layers.
    """

    exchanges: int
    bytes_per_token: float
    bytes_per_layer: float = 0

    def max_latency(self, tokens_per_second: float, share: float) -> float:
        """Return the longest latency of an exchange, in seconds, if they may take this share of a decode step."""
        return share / (tokens_per_second * self.exchanges)

    def bits_per_second(self, tokens_per_second: float, share: float) -> float:
        """Return the bandwidth with which so many tokens take this share of the time."""
        return 8 * self.bytes_per_token * tokens_per_second / share


def tensor(shape: Shape, hosts: int) -> Traffic:
    """Return the traffic of a tensor split: two sums over all hosts in each layer, each in a ring."""
    steps = 2 * (hosts - 1)
    sent = 2 * shape.hidden * ACTIVATION_BYTES * steps / hosts
    return Traffic(2 * shape.layers * steps, shape.layers * sent, sent)


def pipeline(shape: Shape, hosts: int) -> Traffic:
    """Return the traffic of a pipeline split: the activations pass from host to host.

    In the end, each host passes those of all others on, so that all have the last one.
    """
    return Traffic(2 * (hosts - 1), hosts * shape.hidden * ACTIVATION_BYTES)


def decode_rate(shape: Shape, hosts: int, split: str, memory_bandwidth: float, latency: float) -> float:
    """Return the tokens per second of a single response, whose time is that of reading the weights, and the network.

    Args:
        shape: a model with 4 bits per weight.
        hosts: the number of hosts.
        split: `tensor` or `pipeline`.
        memory_bandwidth: of each host, in bytes per second.
        latency: of an exchange, in seconds.
    """
    reading = shape.bytes_read(4) / memory_bandwidth
    if split == "tensor":
        return 1 / (reading / hosts + tensor(shape, hosts).exchanges * latency)
    return 1 / (reading + pipeline(shape, hosts).exchanges * latency)
