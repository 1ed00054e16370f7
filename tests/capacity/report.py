"""The tables of `docs/scaling.md`, computed from figures and shapes."""

import math
from collections.abc import Sequence

from osaurusd.config import BUDGET_FRACTION
from tests.capacity.figures import Figures
from tests.capacity.model import KINDS, max_users, predict
from tests.capacity.network import SHAPES, Shape, decode_rate, pipeline, tensor

HOST_GIGABYTES = (16, 32, 64, 128, 256)
CONTEXT_TOKENS = 32_768
HOSTS = 2
DECODE_RATE = 20.0
PREFILL_RATE = 500.0
NETWORK_SHARE = 0.1
MEMORY_BANDWIDTH = 400e9
LATENCIES = (15e-6, 150e-6, 500e-6)


def user_table(figures: Figures, memory_bytes: int, users: int) -> list[str]:
    """Say how many users of each kind one host serves, and how many hosts `users` users need."""
    rows = [("user", "on one host", "requests/s", "tokens/s each", "seconds each", f"hosts for {users}")]
    for kind in KINDS:
        most = max_users(figures, kind, memory_bytes)
        load = predict(figures, kind, most, memory_bytes) if most else None
        if load is None:
            rows.append((kind.name, "0", "-", "-", "-", "-"))
            continue
        measures = (load.requests_per_second, load.tokens_per_second, load.seconds)
        hosts = math.ceil(users / most)
        rows.append((kind.name, str(most), *(f"{value:.1f}" for value in measures), str(hosts)))
    return format_table(rows)


def kind_table() -> list[str]:
    """Say what the kinds of users do."""
    rows = [("user", "prompt", "of it cached", "response", "pause", "accepts")]
    for kind in KINDS:
        least = f"at least {kind.min_tokens_per_second:g} tokens/s"
        accepts = least if kind.min_tokens_per_second else f"at most {kind.max_seconds:g} s"
        tokens = (f"{kind.prompt_tokens} tokens", f"{kind.cached:.0%}", f"{kind.output_tokens} tokens")
        rows.append((kind.name, *tokens, f"{kind.think_seconds:g} s", accepts))
    return format_table(rows)


def split_table() -> list[str]:
    """Say on how many hosts of which size a model fits, with 4 bits per weight and one long context."""
    rows = [("model, 4 bits", "weights", "context", *(f"{size} GB" for size in HOST_GIGABYTES))]
    for shape in SHAPES:
        weights, context = shape.weights_bytes(4), shape.kv_bytes_per_token * CONTEXT_TOKENS
        counts = [hosts_needed(weights + context, size) for size in HOST_GIGABYTES]
        rows.append((shape.name, f"{weights / 1e9:.1f} GB", f"{context / 1e9:.1f} GB", *map(str, counts)))
    return format_table(rows)


def hosts_needed(needed_bytes: float, gigabytes: int) -> int:
    """Return the number of hosts whose memory budgets together hold so many bytes."""
    return math.ceil(needed_bytes / (gigabytes * 1e9 * BUDGET_FRACTION))


def network_table(hosts: int = HOSTS) -> list[str]:
    """Say what a network must offer, so that it takes a tenth of the time."""
    heads = ("sent per layer", "sent per token", "exchanges per token", "latency of each", "bandwidth")
    rows = [("model", "split", *heads)]
    for shape in SHAPES:
        rows += [_network_row(shape, name, hosts) for name in ("tensor", "pipeline")]
    return format_table(rows)


def speed_table(hosts: int = HOSTS) -> list[str]:
    """Say how fast a single response can be, by the latency of the network."""
    rows = [("model, 4 bits", "split", *(f"{latency * 1e6:.0f} µs" for latency in LATENCIES))]
    for shape in SHAPES:
        for split in ("tensor", "pipeline"):
            rates = [decode_rate(shape, hosts, split, MEMORY_BANDWIDTH, latency) for latency in LATENCIES]
            rows.append((shape.name, split, *(f"{rate:.1f}" for rate in rates)))
    return format_table(rows)


def _network_row(shape: Shape, split: str, hosts: int) -> tuple[str, ...]:
    traffic = (tensor if split == "tensor" else pipeline)(shape, hosts)
    latency = traffic.max_latency(DECODE_RATE, NETWORK_SHARE)
    bandwidth = traffic.bits_per_second(PREFILL_RATE, NETWORK_SHARE)
    return (
        shape.name,
        split,
        f"{traffic.bytes_per_layer / 1e3:.1f} kB" if traffic.bytes_per_layer else "-",
        f"{traffic.bytes_per_token / 1e3:.0f} kB",
        str(traffic.exchanges),
        f"{latency * 1e6:.0f} µs" if latency < 1e-3 else f"{latency * 1e3:.1f} ms",
        f"{bandwidth / 1e9:.1f} Gbit/s",
    )


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a Markdown table."""
    header, *body = [f"| {' | '.join(row)} |" for row in rows]
    return [header, f"| {' | '.join(['---'] * len(rows[0]))} |", *body]
