"""Building `tokenizer.json` and its companions from the vocabulary of a GGUF file.

transformers reads GGUF tokenizers too (`integrations/gguf`), but as of 5.23 it does not split digits for `smollm`,
drops special tokens with characters outside the byte-level alphabet (DeepSeek), and falls back to GPT-2's
pre-tokenizer for unknown names. So this module uses only its file formats.
"""

from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from osaurusd.imports.worker.metadata import Metadata
from osaurusd.imports.worker.pre_tokenizers import find_pre_tokenizer
from osaurusd.imports.worker.vocabulary import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary
from osaurusd.wire.errors import as_json
from osaurusd.wire.files import write_new_json, write_new_text

# SentencePiece's representation of a space.
_SPACE = "▁"
_SUPPORTED = '"gpt2", "llama"'

_MAX_TEMPLATES = 100

# Seven times as many as the largest real vocabulary has.
MAX_MERGES = 1 << 22

_Merges: TypeAlias = list[tuple[str, str]]


def write_tokenizer(vocabulary: Vocabulary, metadata: Metadata, dest: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and, if the file has a template, `chat_template.jinja`.

    Several named templates are part of `tokenizer_config.json`.

    Raises:
        ImportFailed: the tokenizer type is not supported, or the tokenizer is inconsistent.
        OSError: a file could not be written.
    """
    if vocabulary.model == "gpt2":
        add_bos = find_pre_tokenizer(metadata).add_bos
        tokenizer, merges = _byte_level(vocabulary, metadata)
    elif vocabulary.model == "llama":
        add_bos = True
        tokenizer, merges = _sentence_piece(vocabulary, metadata)
    else:
        raise metadata.failure(f"the tokenizer {as_json(vocabulary.model)} is not supported; supported: {_SUPPORTED}")
    add_bos = add_bos if vocabulary.add_bos is None else vocabulary.add_bos
    _add_special_tokens(tokenizer, vocabulary)
    config = _config(vocabulary, metadata, add_bos=add_bos)
    _set_post_processor(tokenizer, vocabulary, add_bos=config["add_bos_token"], add_eos=config["add_eos_token"])
    write_new_text(dest / "tokenizer.json", _document(tokenizer, vocabulary, merges))
    template = metadata.find_text("tokenizer.chat_template")
    if named := _named_templates(metadata):
        # transformers takes the one named `tool_use` for requests with tools, and `default` otherwise.
        templates = named if template is None else {"default": template, **named}
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    elif template:
        write_new_text(dest / "chat_template.jinja", template)
    write_new_json(dest / "tokenizer_config.json", config)


def check_tokenizer(vocabulary: Vocabulary, metadata: Metadata) -> None:
    """Check that the tokenizer is supported and has its merges or scores, without building it.

    Raises:
        ImportFailed: it is not supported, has none, or has too many merges.
    """
    if vocabulary.model == "gpt2":
        find_pre_tokenizer(metadata)
        _merge_texts(metadata)
    elif vocabulary.model == "llama":
        _check_scores(vocabulary, metadata)
    else:
        raise metadata.failure(f"the tokenizer {as_json(vocabulary.model)} is not supported; supported: {_SUPPORTED}")


def _named_templates(metadata: Metadata) -> dict[str, str]:
    names = metadata.find_texts("tokenizer.chat_templates") or []
    if len(names) > _MAX_TEMPLATES:
        raise metadata.failure(f"it has more than {_MAX_TEMPLATES} chat templates")
    return {name: metadata.text(f"tokenizer.chat_template.{name}") for name in names if name != "default"}


def _byte_level(vocabulary: Vocabulary, metadata: Metadata) -> tuple[Tokenizer, _Merges]:
    """Return a tokenizer without its ordinary tokens, and the merges that it needs with them."""
    config = find_pre_tokenizer(metadata)
    tokenizer = Tokenizer(BPE(vocab=_added_tokens(vocabulary), merges=[], ignore_merges=config.ignore_merges))
    if config.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = config.build()
    # mlx_lm has a fast streaming detokenizer for exactly this decoder.
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, _merges(vocabulary.ids, metadata)


def _added_tokens(vocabulary: Vocabulary) -> dict[str, int]:
    """Return the ids of the tokens that `_add_special_tokens` adds."""
    return {token: vocabulary.ids[token] for token in vocabulary.added()}


def _document(tokenizer: Tokenizer, vocabulary: Vocabulary, merges: _Merges) -> str:
    """Return the content of `tokenizer.json`: the tokenizer with all tokens and merges.

    If the library built the tokenizer from these, it would check again what has been checked, and write them as they
    are, which takes ten times as long.
    """
    document = msgspec.json.decode(tokenizer.to_str())
    document["model"] |= {"vocab": vocabulary.ids, "merges": merges}
    return msgspec.json.encode(document).decode()


def _merge_texts(metadata: Metadata) -> list[str]:
    texts = metadata.texts("tokenizer.ggml.merges")
    if len(texts) > MAX_MERGES:
        raise metadata.failure(f"tokenizer.ggml.merges has {len(texts)} merges, more than {MAX_MERGES}")
    return texts


def _merges(ids: dict[str, int], metadata: Metadata) -> _Merges:
    merges: dict[tuple[str, str], None] = {}
    for text in _merge_texts(metadata):
        # In vocabularies that are not strictly byte-level, the first character can be a space.
        split = text.find(" ", 1)
        first, second = text[:split], text[split + 1 :]
        if split < 0 or not (first in ids and second in ids and first + second in ids):
            raise metadata.failure(f"the merge {as_json(text)} does not join two tokens into a third")
        # Of a repeated merge, the first counts in llama.cpp, but the last one in the library.
        merges.setdefault((first, second))
    return [*merges]


def _sentence_piece(vocabulary: Vocabulary, metadata: Metadata) -> tuple[Tokenizer, _Merges]:
    """Return the same as `_byte_level`."""
    _check_scores(vocabulary, metadata)
    tokenizer = Tokenizer(
        BPE(
            vocab=_added_tokens(vocabulary),
            merges=[],
            unk_token=vocabulary.token(vocabulary.unknown),
            fuse_unk=True,
            byte_fallback=all(f"<0x{byte:02X}>" in vocabulary.ids for byte in range(256)),
        )
    )
    prefix = metadata.find_flag("tokenizer.ggml.add_space_prefix") is not False
    escape = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), escape] if prefix else [escape])
    # mlx_lm has a fast streaming detokenizer for exactly these decoders in this order.
    strip = [decoders.Strip(content=" ", left=1, right=0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer, _merges_by_score(vocabulary, metadata)


def _check_scores(vocabulary: Vocabulary, metadata: Metadata) -> None:
    if not vocabulary.scores:
        raise metadata.failure('the metadata key "tokenizer.ggml.scores" is missing')


def _merges_by_score(vocabulary: Vocabulary, metadata: Metadata) -> _Merges:
    """Derive the merges of a SentencePiece BPE model: any two tokens that form a third, highest score first.

    SentencePiece has no list of merges, and the split of a given token does not matter to it. Ties are ordered by the
    ids of the two parts, as in transformers' conversion.
    """
    ids, ranked = vocabulary.ids, []
    for token, kind, score in zip(vocabulary.tokens, vocabulary.types, vocabulary.scores, strict=True):
        if kind != NORMAL:
            continue
        for split in range(1, len(token)):
            first, second = ids.get(token[:split]), ids.get(token[split:])
            if first is not None and second is not None:
                ranked.append((-score, first, second))
        if len(ranked) > MAX_MERGES:
            raise metadata.failure(f"the tokens in tokenizer.ggml.tokens have more than {MAX_MERGES} merges")
    ranked.sort()
    return [(vocabulary.tokens[first], vocabulary.tokens[second]) for _, first, second in ranked]


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Add the tokens that are matched in the text before anything else."""
    special = [AddedToken(token, normalized=False, special=True) for token in vocabulary.of_type(CONTROL, UNKNOWN)]
    # A run of spaces is found in the normalized text, in which a space is another character.
    plain = [AddedToken(token, normalized=_SPACE in token, special=False) for token in vocabulary.of_type(USER_DEFINED)]
    # In one call, because each call rebuilds the search for all added tokens.
    tokenizer.add_tokens(special + plain)


def _set_post_processor(tokenizer: Tokenizer, vocabulary: Vocabulary, *, add_bos: bool, add_eos: bool) -> None:
    """Make the tokenizer add the begin and end tokens."""
    ends = {"bos": vocabulary.bos if add_bos else None, "eos": vocabulary.eos if add_eos else None}
    used = {name: index for name, index in ends.items() if index is not None}
    single = [name for name in ("bos", "$A", "eos") if name.startswith("$") or name in used]
    tokenizer.post_processor = TemplateProcessing(
        single=single,
        pair=single + [f"{name}:1".replace("$A", "$B") for name in single],
        # Named by their role: their text may contain characters with a meaning in templates.
        special_tokens=[
            {"id": name, "ids": [index], "tokens": [vocabulary.tokens[index]]} for name, index in used.items()
        ],
    )


def _config(vocabulary: Vocabulary, metadata: Metadata, *, add_bos: bool) -> dict[str, Any]:
    named = {
        "bos_token": vocabulary.token(vocabulary.bos),
        "eos_token": vocabulary.token(vocabulary.eos),
        "unk_token": vocabulary.token(vocabulary.unknown),
        "pad_token": vocabulary.token(vocabulary.padding),
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # transformers rebuilds the post-processor from these two.
        "add_bos_token": add_bos and vocabulary.bos is not None,
        "add_eos_token": bool(vocabulary.add_eos) and vocabulary.eos is not None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.integer(f"{metadata.text('general.architecture')}.context_length"),
        **{name: token for name, token in named.items() if token is not None},
    }
