"""Tiny random networks of several architectures, and their reference output."""

import importlib

import mlx.core as mx
import pytest
from mlx.utils import tree_map_with_path
from mlx_lm.models.cache import make_prompt_cache

VOCABULARY = 97
WINDOW = 8

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
}
_UNTIED = {**_SIZES, "tie_word_embeddings": False}
_GEMMA = {**_SIZES, "head_dim": 16, "query_pre_attn_scalar": 16}

CONFIGS = {
    "llama": {**_UNTIED, "model_type": "llama"},
    "qwen2": {**_UNTIED, "model_type": "qwen2"},
    "qwen3": {
        **_UNTIED,
        "model_type": "qwen3",
        "head_dim": 16,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
    },
    "gemma2": {**_GEMMA, "model_type": "gemma2"},
    # Layers with different numbers of heads.
    "openelm": {
        "model_type": "openelm",
        "vocab_size": VOCABULARY,
        "head_dim": 16,
        "num_transformer_layers": 2,
        "model_dim": 32,
        "ffn_dim_divisor": 32,
        "num_query_heads": [2, 4],
        "num_kv_heads": [1, 2],
        "ffn_multipliers": [1.0, 2.0],
    },
    # A sliding window in every other layer.
    "gemma3": {
        **_GEMMA,
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
    },
    # A convolution in one layer, attention in the other.
    "lfm2": {
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
    # A recurrent state and attention in each layer.
    "falcon_h1": {
        **_SIZES,
        "model_type": "falcon_h1",
        "head_dim": 16,
        "mamba_d_ssm": 32,
        "mamba_d_head": 16,
        "mamba_n_heads": 2,
        "mamba_d_state": 8,
        "mamba_d_conv": 4,
        "embedding_multiplier": 1.0,
        "lm_head_multiplier": 1.0,
    },
    # Chunked attention; mlx_lm cannot merge its caches.
    "llama4": {
        "model_type": "llama4",
        "text_config": {
            **_SIZES,
            "model_type": "llama4_text",
            "attention_bias": False,
            "attention_chunk_size": WINDOW,
            "head_dim": 16,
            "interleave_moe_layer_step": 1,
            "intermediate_size_mlp": 64,
            "max_position_embeddings": 2048,
            "num_experts_per_tok": 1,
            "num_hidden_layers": 4,
            "num_local_experts": 2,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "use_qk_norm": True,
        },
    },
}

SLICEABLE = ["llama", "qwen2", "qwen3", "gemma2", "openelm"]
"""Architectures whose caches can be sliced at any token."""

WITH_STATES = ["gemma3", "lfm2", "falcon_h1", "llama4"]

BATCHABLE = [kind for kind in CONFIGS if kind != "llama4"]
"""Architectures whose sequences can share a forward pass."""

KINDS = list(CONFIGS)

_SAMPLE = ["llama", "gemma3", "falcon_h1", "llama4"]
"""One architecture for each kind of cache: plain, with a rotating window, with a state, in chunks."""


def sample(kinds, *others):
    """Return parameters for these architectures. All but a sample and `others` are marked "long"."""
    return select(kinds, *_SAMPLE, *others)


def select(kinds, *selected):
    """Return parameters for these architectures. All but the selected ones are marked "long"."""
    return [kind if kind in selected else pytest.param(kind, marks=pytest.mark.long) for kind in kinds]


# Untrained layers hardly change their input; with larger weights the output depends on the whole prompt.
_GAIN = 3.0

PROMPT = [7, 8, 9]


def tokens(count, start=0):
    """Return `count` tokens of a sequence that does not repeat itself."""
    return [(13 * i + i * i // 7 + i // 5) % (VOCABULARY - 1) for i in range(start, start + count)]


def make_network(kind, seed=1):
    config = CONFIGS[kind]
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(seed)
    network = module.Model(module.ModelArgs.from_dict(config))
    network.update(tree_map_with_path(_amplify, network.parameters()))
    mx.eval(network.parameters())
    return network


def _amplify(path, weight):
    return weight * _GAIN if weight.ndim >= 2 and "embed" not in path else weight


# Reference output, computed without any cache


def greedy(network, prompt, count):
    """Return the greedy continuation of a prompt."""
    network = getattr(network, "network", network)
    key = (id(network), tuple(prompt))
    output = _greedy_outputs.get(key, [])
    if len(output) < count:
        output = [*output, *greedy_batch(network, [[*prompt, *output]], count - len(output))[0]]
        _greedy_outputs[key] = output
    return output[:count]


def greedy_batch(network, prompts, count):
    """Return the greedy continuations of prompts of equal length."""
    rows = mx.array(prompts)
    for _ in range(count):
        rows = mx.concatenate([rows, mx.argmax(network(rows)[:, -1:], axis=-1)], axis=1)
    return [row[len(prompts[0]) :] for row in rows.tolist()]


_greedy_outputs = {}  # slow to compute and needed often; networks live as long as the test session


def is_greedy(network, prompt, output):
    """Whether `output` is the greedy continuation of a prompt, checked in a single pass."""
    return mx.argmax(_logits(network, prompt, output), axis=-1).tolist() == output


def expected_logprobs(network, prompt, output):
    """Return the log-probability of each token of `output` after a prompt."""
    logits = _logits(network, prompt, output)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.take_along_axis(logprobs, mx.array(output)[:, None], axis=-1)[:, 0].tolist()


def _logits(network, prompt, output):
    network = getattr(network, "network", network)
    key = (id(network), tuple(prompt), tuple(output))
    if key not in _cached_logits:
        _cached_logits[key] = network(mx.array([[*prompt, *output[:-1]]]))[0, len(prompt) - 1 :]
        mx.eval(_cached_logits[key])
    return _cached_logits[key]


_cached_logits = {}


def prefill(network, prompt):
    """Return a cache that holds a prompt, and the logits [1, vocabulary] after it."""
    cache = make_prompt_cache(network)
    logits = network(mx.array([prompt]), cache=cache)[:, -1]
    mx.eval(logits, [layer.state for layer in cache])
    return cache, logits


class RecordingNetwork:
    """A network that records the shapes of its input, and fails on demand.

    Args:
        network: computes the output.
        poison: a token that makes a pass fail.

    Attributes:
        failures: how many of the next calls fail.
        on_call: called before each pass.
    """

    def __init__(self, network, poison=None):
        self.network = network
        self.poison = poison
        self.shapes = []
        self.failures = 0
        self.on_call = lambda: None

    def __call__(self, tokens, cache=None):
        self.on_call()
        self.shapes.append(tuple(tokens.shape))
        if self.poison is not None and (tokens == self.poison).any().item():
            raise ValueError("poisoned")
        if self.failures:
            self.failures -= 1
            raise ValueError("broken")
        return self.network(tokens, cache=cache)

    def __getattr__(self, name):
        return getattr(self.network, name)

    @property
    def single_widths(self):
        """The widths of the passes over a single sequence; these are prompts if at least two sequences decode."""
        return [width for rows, width in self.shapes if rows == 1]
