"""What the network carries if a model is split over several hosts, by the shape of the model."""

from dataclasses import dataclass

ACTIVATION_BYTES = 2
"""Activations are exchanged in 16 bits."""


@dataclass(frozen=True)
class Shape:
    """The shape of a model.

    Attributes:
        parameters: in billions.
        hidden: width of the activations between layers.
        kv_width: width of keys and values together, per layer.
    """

    name: str
    parameters: float
    layers: int
    hidden: int
    kv_width: int

    def weights_bytes(self, bits: int) -> float:
        """Return the size of quantized weights; each group of 64 has a scale and a bias of 16 bits."""
        return self.parameters * 1e9 * (bits + 0.5) / 8

    @property
    def kv_bytes_per_token(self) -> int:
        return self.layers * self.kv_width * ACTIVATION_BYTES


SHAPES = (
    Shape("8B (Llama 3.1)", 8.0, 32, 4096, 2048),
    Shape("32B (Qwen 3)", 32.8, 64, 5120, 2048),
    Shape("70B (Llama 3.3)", 70.6, 80, 8192, 2048),
    Shape("235B, mixture of experts (Qwen 3)", 235.0, 94, 4096, 1024),
)


@dataclass(frozen=True)
class Traffic:
    """What each token costs.

    Attributes:
        exchanges: messages that must arrive one after the other, per forward pass.
        bytes_per_token: what each host sends for each token.
    """

    exchanges: int
    bytes_per_token: float

    def max_latency(self, tokens_per_second: float, share: float) -> float:
        """Return the longest latency of an exchange, in seconds, if they may take this share of a decode step."""
        return share / (tokens_per_second * self.exchanges)

    def bits_per_second(self, tokens_per_second: float, share: float) -> float:
        """Return the bandwidth with which so many tokens take this share of the time."""
        return 8 * self.bytes_per_token * tokens_per_second / share


def tensor(shape: Shape, hosts: int) -> Traffic:
    """Return the traffic of a tensor split: two sums over all hosts in each layer, each in a ring."""
    steps = 2 * (hosts - 1)
    sent = 2 * shape.layers * shape.hidden * ACTIVATION_BYTES * steps / hosts
    return Traffic(2 * shape.layers * steps, sent)


def pipeline(shape: Shape, hosts: int) -> Traffic:
    """Return the traffic of a pipeline split: the activations pass from host to host, and the last result returns."""
    return Traffic(hosts, shape.hidden * ACTIVATION_BYTES)
