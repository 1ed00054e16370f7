"""Tiny random networks of several kinds, what they must answer, and requests to ask it with."""

import importlib

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path
from mlx_lm.models.cache import make_prompt_cache

from osaurusd.inference.events import Completed, Delta, Finished
from osaurusd.inference.request import SamplingParams
from osaurusd.rpc import messages
from osaurusd.worker.engine.request import Choice, EngineRequest
from osaurusd.worker.engine.sampling import SamplingState
from osaurusd.worker.frontend.constraint import ConstraintFailed
from osaurusd.worker.frontend.text_assembler import OutputDelta

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
    # Its layers have heads of different numbers.
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
    # Sliding windows in every other layer.
    "gemma3": {
        **_GEMMA,
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
    },
    # Convolutions in one layer, attention in the other.
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
    # Attention in chunks; its caches cannot be merged into a batch.
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
"""Kinds whose caches can be cut at any token."""

WITH_STATES = ["gemma3", "lfm2", "falcon_h1", "llama4"]

BATCHABLE = [kind for kind in CONFIGS if kind != "llama4"]
"""Kinds that give sequences in a batch what each gets alone."""

KINDS = list(CONFIGS)

# Untrained layers hardly change what passes through them; with larger weights the whole prompt decides.
_GAIN = 3.0

PROMPT = [7, 8, 9]


def tokens(count, start=0):
    """A text of `count` tokens that does not repeat itself."""
    return [(13 * at + at * at // 7 + at // 5) % (VOCABULARY - 1) for at in range(start, start + count)]


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
    network = getattr(network, "_network", network)
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


def greedy_along(network, prompt, said):
    """The most likely token after `prompt` and after each beginning of `said`, in one pass without any cache.

    It is `said` itself if, and only if, that is the greedy continuation.
    """
    return mx.argmax(_logits_along(network, prompt, said), axis=-1).tolist()


def logprobs_along(network, prompt, said):
    """The log-probability of each token of `said`, found the same way."""
    logits = _logits_along(network, prompt, said)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.take_along_axis(logprobs, mx.array(said)[:, None], axis=-1)[:, 0].tolist()


def _logits_along(network, prompt, said):
    network = getattr(network, "_network", network)
    key = (id(network), tuple(prompt), tuple(said))
    if key not in _along:
        _along[key] = network(mx.array([[*prompt, *said[:-1]]]))[0, len(prompt) - 1 :]
        mx.eval(_along[key])
    return _along[key]


_along = {}


def prefilled(network, prompt):
    """A cache that holds a prompt, and the logits [1, vocabulary] after it."""
    cache = make_prompt_cache(network)
    logits = network(mx.array([prompt]), cache=cache)[:, -1]
    mx.eval(logits, [layer.state for layer in cache])
    return cache, logits


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

    @property
    def chunks(self):
        """The widths of the passes over one sequence: of prompts, where at least two decode."""
        return [width for rows, width in self.shapes if rows == 1]


class Saying:
    """An answer that writes token 7 as `7 `.

    Args:
        stop: a token at which it is complete; not written.
        spoils: a token that it cannot read.
        unfinished: it cannot be finished.
    """

    def __init__(self, stop=None, spoils=None, unfinished=False):
        self._stop = stop
        self._spoils = spoils
        self._unfinished = unfinished
        self.scores = []
        self.stopped = False
        self.has_tool_calls = False
        self.reasoning_tokens = 0

    def add(self, token, score=None):
        self.scores.append(score)
        if token == self._spoils:
            raise ValueError("unreadable")
        if token == self._stop:
            self.stopped = True
            return None
        return OutputDelta(text=written([token]))

    def finish(self, *, cut):
        if self._unfinished:
            raise ValueError("unfinished")
        return OutputDelta(text="cut ") if cut else None


class Odd:
    """A constraint that allows odd and even tokens in turn, odd ones first.

    Args:
        most: how many tokens it can bear.
    """

    def __init__(self, most=10_000):
        self.heard = []
        self._most = most

    def advance(self, token):
        self.heard.append(token)
        if len(self.heard) > self._most:
            raise ConstraintFailed("enough")

    def fork(self):
        return Odd(self._most)

    def fill(self, row):
        allowed = np.arange(row.size * 32) % 2 != len(self.heard) % 2
        row[:] = np.packbits(allowed, bitorder="little").view(np.int32)


class Untold(Exception):
    """The engine does not come to an end."""


def turn(engine):
    """What the MLX thread does between two looks at its orders; all frames but Stats."""
    frames = engine.decode()
    frames += engine.prefill()
    return [frame for frame in frames if not isinstance(frame, messages.Stats)]


def run(engine, *requests):
    """Add requests and go on until nothing is left to do; all frames."""
    frames = [frame for one in requests for frame in engine.add(one)]
    for _ in range(3000):
        if not engine.busy:
            return frames
        frames += turn(engine)
    raise Untold


def until(engine, id_, count=1):
    """Go on until a request has got so many frames; all frames."""
    frames = []
    while sum(frame.id == id_ for frame in frames) < count:
        if not engine.busy:
            raise Untold
        frames += turn(engine)
    return frames


def text_of(frames, id_, index=0):
    deltas = [frame for frame in frames if isinstance(frame, Delta) and (frame.id, frame.index) == (id_, index)]
    return "".join(delta.text for delta in deltas)


def done_of(frames, id_):
    """The last frame of a request, which must be its only Done."""
    (done,) = [frame for frame in frames if isinstance(frame, Completed) and frame.id == id_]
    assert done is [frame for frame in frames if frame.id == id_][-1]
    return done


def reason_of(frames, id_, index=0):
    """Why an answer ended, which must have been told once."""
    ends = [frame for frame in frames if isinstance(frame, Finished) and (frame.id, frame.index) == (id_, index)]
    (end,) = ends
    return end.reason


def written(tokens):
    return "".join(f"{token} " for token in tokens)


def said_in(text):
    """The tokens of an answer's text."""
    return [int(word) for word in text.split() if word.isdigit()]


GREEDY = SamplingParams(temperature=0)


def request(
    id_, prompt, max_tokens=8, sampling=GREEDY, *, n=1, scored=None, answer=Saying, constraint=None, **properties
):
    """A request with `n` answers; `properties` are those of Request."""
    choices = [
        Choice(
            index,
            SamplingState(
                sampling,
                prompt=prompt,
                scored=scored,
                entropy=1000 * id_ + 7,
                number=index,
                constraint=constraint and constraint.fork(),
            ),
            answer(),
        )
        for index in range(n)
    ]
    return EngineRequest(id=id_, prompt=list(prompt), choices=choices, max_tokens=max_tokens, **properties)
