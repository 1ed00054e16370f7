"""Facts of models and hosts for tests of groups."""

from osaurusd.groups.candidates import CandidateHost
from osaurusd.groups.facts import HEADS_WIDTH, ModelFacts, Part

VERSIONS = {"osaurusd": "1.0", "mlx": "0.32.4", "mlx-lm": "0.32.2"}
GB = 10**9


def facts(architecture="qwen2", *, layers=32, layer_bytes=GB, shared_bytes=GB, **changes):
    """Return a model whose layers have a GB each."""
    settings = {
        "name": "m",
        "architecture": architecture,
        "layers": (Part(layer_bytes, layer_bytes // 2),) * layers,
        "shared": Part(shared_bytes, shared_bytes // 2),
        "sizes": {
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            HEADS_WIDTH: 4096,
        },
        "group_size": 64,
        "cache_bytes_per_token": 128 * 1024,
        "context_length": 8192,
    }
    return ModelFacts(**(settings | changes))


def host(name=None, gigabytes=64.0, **changes):
    """Return a host on a private network with the versions of all others."""
    settings = {
        "name": name,
        "memory_bytes": int(gigabytes * GB),
        "versions": VERSIONS,
        "link_address": "10.0.0.1",
    }
    return CandidateHost(**(settings | changes))
