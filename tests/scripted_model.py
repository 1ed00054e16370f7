"""A model with scripted replies, so that tests know what a client receives: text and tool calls, token by token.

It is a real model for a real worker. The pieces of a reply are tokens of their own, and the network is a table of the
token that follows each token. The chat template ends a prompt with the token that selects the reply.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer

from tests.models import make_tiny

TEMPLATE = Path(__file__).parent / "osaurusd" / "worker" / "chat_templates" / "qwen2.5.jinja"
CONTEXT = 131072

RESULT_COUNT = "messages | selectattr('role', 'equalto', 'tool') | list | length"
"""The number of tool results so far, as an expression in Jinja."""

_PIECE_LENGTH = 6
_HEADS = 2
_HEAD_DIMENSION = 32
_END_TOKEN = 2
_GENERATION_PROMPT = "'<|im_start|>assistant\\n'"


def tool_call(name: str, **arguments: Any) -> str:
    """Return a tool call in the format of the model."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def make_scripted(
    folder: Path, tokenizer: Path, replies: Sequence[str], *, choose: str = RESULT_COUNT, **config: Any
) -> Path:
    """Create the model.

    Args:
        folder: where to write the model.
        tokenizer: a model folder from which the tokenizer is copied.
        replies: what the model can reply, in ASCII.
        choose: an expression in Jinja for the index of the reply. Without tools, and if the index is too large, the
            model gives the last reply.
        config: keys of config.json.
    """
    vocabulary = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    selectors = [f"<|reply_{index}|>" for index in range(len(replies))]
    pieces = list(_split(replies, vocabulary))
    added = [AddedToken(piece, normalized=False) for reply in pieces for piece in reply]
    vocabulary.add_tokens(added)
    vocabulary.add_special_tokens(selectors)
    chains = [
        [vocabulary.token_to_id(token) for token in (selector, *reply)]
        for selector, reply in zip(selectors, pieces, strict=True)
    ]
    width = _HEADS * _HEAD_DIMENSION
    settings = {
        "vocab_size": vocabulary.get_vocab_size(),
        "hidden_size": math.ceil((1 + sum(map(len, chains))) / width) * width,
        "num_hidden_layers": 1,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "eos_token_id": _END_TOKEN,
    }
    make_tiny(folder, tokenizer, template=_template(choose, len(replies)), **{**settings, **config})
    vocabulary.save(str(folder / "tokenizer.json"))
    _write_weights(folder / "model.safetensors", chains)
    return folder


def _split(replies: Sequence[str], vocabulary: Tokenizer) -> Iterator[list[str]]:
    """Split each reply into pieces that differ from each other and from all tokens."""
    seen: set[str] = set()
    for reply in replies:
        pieces: list[str] = []
        piece = ""
        for character in reply:
            piece += character
            if len(piece) >= _PIECE_LENGTH and piece not in seen and vocabulary.token_to_id(piece) is None:
                seen.add(piece)
                pieces.append(piece)
                piece = ""
        # The rest is too short or not unique. It is joined with as many pieces before it as necessary.
        while piece:
            assert pieces, f"the reply {reply!r} cannot be split"
            previous = pieces.pop()
            seen.discard(previous)
            piece = previous + piece
            if piece not in seen:
                seen.add(piece)
                pieces.append(piece)
                piece = ""
        yield pieces


def _template(choose: str, count: int) -> str:
    last = count - 1
    selector = f"{_GENERATION_PROMPT} ~ '<|reply_' ~ ([{choose} if tools else {last}, {last}] | min) ~ '|>'"
    return TEMPLATE.read_text().replace(_GENERATION_PROMPT, selector)


def _write_weights(path: Path, chains: list[list[int]]) -> None:
    """Make the network a table: each token of a chain has a dimension of its own, and all others share the first."""
    weights: dict[str, Any] = dict(mx.load(str(path)))
    embeddings, head = (mx.zeros_like(weights[f"{name}.weight"]) for name in ("model.embed_tokens", "lm_head"))
    embeddings[:, 0] = 1
    head[_END_TOKEN, 0] = 1
    dimension = 0
    for chain in chains:
        for token, following in zip(chain, [*chain[1:], _END_TOKEN], strict=True):
            dimension += 1
            embeddings[token, 0] = 0
            embeddings[token, dimension] = 1
            head[following, dimension] = 1
    weights |= {"model.embed_tokens.weight": embeddings, "lm_head.weight": head * 4}
    for name in [name for name in weights if "layers" in name and name.endswith("proj.weight")]:
        weights[name] = mx.zeros_like(weights[name])
    mx.eval(weights)
    mx.save_safetensors(str(path), weights, {"format": "mlx"})
