"""Tiny random networks of several kinds, and what they must answer."""

import importlib

import mlx.core as mx
from mlx.utils import tree_map_with_path
from mlx_lm.models.cache import make_prompt_cache

from osaurusd import ipc
from osaurusd.worker.engine import Sequence
from osaurusd.worker.text import TextStream

VOCABULARY = 97

_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}

CONFIGS = {
    "full attention": _LLAMA,
    "sliding window": {**_LLAMA, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "convolutions": {
        "model_type": "lfm2",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 32,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "intermediate_size": 64,
        "full_attn_idxs": [1],
    },
    # Its caches cannot be merged into a batch.
    "chunked attention": {
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text",
            "attention_bias": False,
            "attention_chunk_size": 8,
            "head_dim": 16,
            "hidden_size": 32,
            "interleave_moe_layer_step": 1,
            "intermediate_size": 64,
            "intermediate_size_mlp": 64,
            "max_position_embeddings": 2048,
            "num_attention_heads": 2,
            "num_experts_per_tok": 1,
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "num_local_experts": 2,
            "rms_norm_eps": 1e-5,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "use_qk_norm": True,
            "vocab_size": VOCABULARY,
        },
    },
}

BATCHABLE = ["full attention", "sliding window", "convolutions"]

# Untrained layers hardly change what passes through them; with larger weights the whole prompt decides.
_GAIN = 3.0


def make_network(kind, seed=1):
    config = CONFIGS[kind]
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(seed)
    network = module.Model(module.ModelArgs.from_dict(config))
    louder = tree_map_with_path(_louder, network.parameters())
    network.update(louder)
    mx.eval(network.parameters())
    return network


def _louder(path, weight):
    return weight * _GAIN if weight.ndim >= 2 and "embed" not in path else weight


def greedy(network, prompt, count):
    """The most likely continuation, found the slow way: the whole text anew for each token, without any cache."""
    key = (id(network), tuple(prompt))
    found = _found.get(key, [])
    if len(found) < count:
        (found,) = greedy_all(network, [[*prompt, *found]], count - len(found), found)
        _found[key] = found
    return found[:count]


def greedy_all(network, prompts, count, begun=()):
    """The same for prompts of one length."""
    rows = mx.array(prompts)
    for _ in range(count):
        rows = mx.concatenate([rows, mx.argmax(network(rows)[:, -1:], axis=-1)], axis=1)
    return [[*begun, *row[len(prompts[0]) :]] for row in rows.tolist()]


_found = {}  # what is slow and asked for again and again; networks live as long as the tests


def prefill(network, prompt):
    """A cache that holds all of a prompt but its last token."""
    cache = make_prompt_cache(network)
    if len(prompt) > 1:
        network(mx.array([prompt[:-1]]), cache=cache)
    return cache


class Watched:
    """A network that notes the shapes it is called with, and fails on demand.

    Args:
        network: does the work.
        poison: a token that it cannot read.
    """

    def __init__(self, network, poison=None):
        self._network = network
        self._poison = poison
        self.shapes = []
        self.failures = 0

    def __call__(self, tokens, cache=None):
        self.shapes.append(tuple(tokens.shape))
        if self._poison is not None and (tokens == self._poison).any().item():
            raise ValueError("poisoned")
        if self.failures:
            self.failures -= 1
            raise ValueError("broken")
        return self._network(tokens, cache=cache)

    def __getattr__(self, name):
        return getattr(self._network, name)


class Numbers:
    """A detokenizer that writes token 7 as `7 `."""

    def __init__(self):
        self.last_segment = ""

    def add_token(self, token):
        self.last_segment = f"{token} "

    def finalize(self):
        self.last_segment = ""


def written(tokens):
    return "".join(f"{token} " for token in tokens)


GREEDY = ipc.Sampling(temperature=0, top_p=1)


def sequence(id_, prompt, max_tokens=8, sampling=GREEDY, stop=()):
    return Sequence(
        id=id_, prompt=list(prompt), max_tokens=max_tokens, sampling=sampling, text=TextStream(Numbers(), stop)
    )
