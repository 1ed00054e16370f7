"""Random layouts of a model on disk: files that are missing, extra, linked, renamed, damaged, sharded or indexed."""

import base64
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import sentencepiece
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from osaurusd.models import roots
from osaurusd.models.roots import Root
from tests.models import TINY_LLAMA

TEXT = "hello world"
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
COMMITS = ("a" * 40, "b" * 40)

FOLDER_NAMES = (
    *("plain", "with space", "[brackets]", "a[1]b", "star*", "question?", "{braces}", "ünï", "-dash", "~tilde", "%41"),
    *("dot.name", "quote'\"", "back\\slash", "$HOME", "new\nline", "#hash", "models--x", "!bang", "[!x]"),
)
TOKENIZER_CLASSES = (
    *("LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "GPT2Tokenizer"),
    *("MistralCommonBackend", "MistralCommonTokenizer", "Qwen2Tokenizer", "GemmaTokenizer", "T5Tokenizer"),
    *("SentencePieceBackend", "BertTokenizer", "NoSuchTokenizer", "PreTrainedTokenizer", None, ""),
)
EXTRA_FILES = (
    *("README.md", ".DS_Store", "model.safetensors.bak", "consolidated.safetensors", "adapters.safetensors"),
    *(
        "pytorch_model.bin",
        "modeling_own.py",
        "model.safetensors.part",
        "training_args.json",
        "notes.txt",
        "._config.json",
    ),
)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"


@dataclass(frozen=True)
class Link:
    """A symbolic link to content elsewhere: `inside` or `outside` the store, or to `nothing`."""

    where: str
    content: bytes = b""


class Folder:
    """A folder in place of a file."""


Entry = bytes | Link | Folder
Files = dict[str, Entry]


@dataclass
class Layout:
    """A model on disk: how it differs from a plain one, where to scan for it, and how mlx_lm is asked for it."""

    root: Root
    path: Path
    repo: str | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join([self.root.source, *self.notes])


class Parts:
    """The files from which layouts are assembled, created once."""

    def __init__(self) -> None:
        self.config = TINY_LLAMA | {"vocab_size": 320, "num_hidden_layers": 1, "model_type": "llama"}
        self.tokenizers = _make_tokenizers()
        mx.random.seed(0)
        network = llama.Model(llama.ModelArgs.from_dict(self.config))
        self.full = dict(tree_flatten(network.parameters()))
        quantize(network, group_size=32, bits=4)
        self.quantized = dict(tree_flatten(network.parameters()))
        self.whole = {False: _encode(self.full), True: _encode(self.quantized)}
        self.shards = {key: _split(tensors) for key, tensors in ((False, self.full), (True, self.quantized))}

    def index(self, *files: str) -> bytes:
        """Return an index that places the unquantized tensors in `files`."""
        return json.dumps({"weight_map": {name: files[i % len(files)] for i, name in enumerate(self.full)}}).encode()


def _make_tokenizers() -> dict[str, dict[str, bytes]]:
    """Return the files of a tokenizer in each format."""
    corpus = [f"{TEXT} in a small text for a small tokenizer"] * 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    document = json.loads(tokenizer.to_str())
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in document["model"]["merges"]]
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=pieces,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokens = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    settings = {"pattern": "\\w+|\\W", "default_vocab_size": 300, "default_num_special_tokens": 4, "version": "v3"}
    return {
        "json": {"tokenizer.json": tokenizer.to_str().encode()},
        "sentencepiece": {"tokenizer.model": pieces.getvalue()},
        "bpe": {
            "vocab.json": json.dumps(document["model"]["vocab"]).encode(),
            "merges.txt": "\n".join(["#version: 0.2", *pairs]).encode(),
        },
        "tekken": {"tekken.json": json.dumps({"config": settings, "vocab": tokens, "special_tokens": []}).encode()},
        "tiktoken": {"tiktoken.model": b"\n".join(base64.b64encode(bytes([i])) + b" %d" % i for i in range(256))},
        "other": {"spiece.model": pieces.getvalue()},
        "none": {},
    }


def _encode(tensors: dict[str, mx.array]) -> bytes:
    file = io.BytesIO()
    file.name = "model.safetensors"
    mx.save_safetensors(file, tensors, {"format": "mlx"})
    return file.getvalue()


def _split(tensors: dict[str, mx.array]) -> tuple[bytes, bytes, bytes]:
    """Return two shards and their index."""
    half = len(tensors) // 2
    places = {name: ONE if i < half else TWO for i, name in enumerate(tensors)}
    one, two = ({name: tensors[name] for name in tensors if places[name] == file} for file in (ONE, TWO))
    return _encode(one), _encode(two), json.dumps({"weight_map": places}).encode()


class Generator:
    """Creates layouts.

    Args:
        parts: the files to use.
        seed: two generators with the same seed create the same layouts.
    """

    def __init__(self, parts: Parts, seed: int) -> None:
        self._parts = parts
        self._random = random.Random(seed)

    def create(self, store: Path) -> Layout:
        """Write the next layout below `store`, an empty folder."""
        notes: list[str] = []
        files = self._base(notes)
        for _ in range(self._random.choice((0, 1, 1, 1, 2, 2, 3))):
            change = self._random.choice(CHANGES)
            notes.append(change(self._random, files))
        return self._place(store, files, notes)

    def _base(self, notes: list[str]) -> Files:
        choose, parts = self._random.choice, self._parts
        quantized = choose((False, False, True))
        config = dict(parts.config)
        if quantized:
            config["quantization"] = {"group_size": 32, "bits": 4}
        tokenizer = choose(("json",) * 8 + ("sentencepiece", "bpe", "bpe", "tekken", "tiktoken", "other", "none"))
        template = choose(("jinja", "config", "json", "processor", "several", "none"))
        weights = choose(
            ("whole", "whole", "shards", "shards without index", "stale index", "two forms", "index outside")
        )
        declared = choose(TOKENIZER_CLASSES) if self._random.random() < 0.4 else "absent"
        notes += [f"tokenizer {tokenizer}", f"template {template}", f"weights {weights}", f"class {declared}"]
        notes += ["quantized"] if quantized else []
        tokenizer_config = {} if declared == "absent" else {"tokenizer_class": declared}
        files: Files = {"config.json": json.dumps(config).encode(), **parts.tokenizers[tokenizer]}
        files |= self._weights(weights, quantized)
        if template in ("jinja", "several"):
            files["chat_template.jinja"] = TEMPLATE.encode()
        if template in ("config", "several"):
            tokenizer_config["chat_template"] = TEMPLATE
        if template in ("json", "several"):
            files["chat_template.json"] = json.dumps({"chat_template": TEMPLATE}).encode()
        if template == "processor":
            files["processor_config.json"] = json.dumps({"chat_template": TEMPLATE}).encode()
        if tokenizer_config or choose((True, False)):
            files["tokenizer_config.json"] = json.dumps(tokenizer_config).encode()
        if choose((True, False)):
            files["generation_config.json"] = b'{"eos_token_id": [1, 2]}'
        if choose((True, False, False)):
            files["special_tokens_map.json"] = b'{"eos_token": "</s>"}'
        return files

    def _weights(self, kind: str, quantized: bool) -> Files:
        parts = self._parts
        one, two, index = parts.shards[quantized]
        whole = {"model.safetensors": parts.whole[quantized]}
        others = [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
        kinds: dict[str, Files] = {
            "whole": {**whole},
            "shards": {ONE: one, TWO: two, INDEX: index},
            "shards without index": {ONE: one, TWO: two},
            "stale index": {**whole, INDEX: parts.index(*others)},
            "two forms": {**whole, ONE: one, TWO: two, INDEX: index},
            "index outside": {**whole, INDEX: parts.index("model.safetensors", "../other/model.safetensors")},
        }
        return kinds[kind]

    def _place(self, store: Path, files: Files, notes: list[str]) -> Layout:
        source = self._random.choice(("imported", "extra", "extra of an organization", "extra root", "hub", "hub"))
        folder = self._random.choice(FOLDER_NAMES) if self._random.random() < 0.4 else "plain"
        notes.append(f"{source} {folder!r}")
        if source == "hub":
            return self._place_in_hub(store / folder, files, notes)
        root = Root("imported" if source == "imported" else "extra", store / "models")
        path = {"extra of an organization": root.path / "org" / folder, "extra root": root.path}.get(
            source, root.path / folder
        )
        _write(path, files, store / "models" / ".shared", store / "outside")
        return Layout(root, path, notes=notes)

    def _place_in_hub(self, hub: Path, files: Files, notes: list[str]) -> Layout:
        choose = self._random.choice
        repo = roots.repo_folder(hub, "org/model")
        kind = choose(("links", "links", "links", "copies", "absolute links"))
        state = choose(("main",) * 6 + ("no ref", "other ref", "ref to nothing", "older complete", "newer incomplete"))
        notes += [kind, state]
        snapshot = repo / "snapshots" / COMMITS[0]
        shared = repo / "blobs"
        _write(snapshot, files, shared, hub.parent / "outside")
        if kind != "copies":
            _move_to_blobs(snapshot, shared, absolute=kind == "absolute links")
        (repo / "refs").mkdir()
        if state == "older complete":
            shutil.copytree(snapshot, snapshot.with_name(COMMITS[1]), symlinks=True)
        if state == "newer incomplete":
            snapshot.with_name(COMMITS[1]).mkdir()
            (snapshot.with_name(COMMITS[1]) / "config.json").write_text("{}")
        commit = COMMITS[1] if state == "ref to nothing" else COMMITS[0]
        if state != "no ref":
            (repo / "refs" / ("v1" if state == "other ref" else "main")).write_text(commit)
        return Layout(Root("hub", hub), snapshot, "org/model", notes)


def _write(folder: Path, files: Files, inside: Path, outside: Path) -> None:
    folder.mkdir(parents=True)
    for name, entry in files.items():
        path = folder / name
        if isinstance(entry, bytes):
            path.write_bytes(entry)
        elif isinstance(entry, Folder):
            path.mkdir()
        elif entry.where == "nothing":
            path.symlink_to("no-such-file")
        else:
            target = (inside if entry.where == "inside" else outside) / f"content of {name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(entry.content)
            path.symlink_to(target)


def _move_to_blobs(snapshot: Path, blobs: Path, *, absolute: bool) -> None:
    blobs.mkdir(exist_ok=True)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        if path.is_file() and not path.is_symlink():
            blob = path.rename(blobs / f"{number:040x}")
            path.symlink_to(blob if absolute else Path("../../blobs") / blob.name)


def _any_file(rng: random.Random, files: Files) -> str:
    return rng.choice([name for name in files if isinstance(files[name], bytes)] or ["config.json"])


def _change(
    describe: str, edit: Callable[[random.Random, bytes], Entry | None]
) -> Callable[[random.Random, Files], str]:
    """Return a change of one file."""

    def change(rng: random.Random, files: Files) -> str:
        name = _any_file(rng, files)
        content = files.pop(name, b"")
        entry = edit(rng, content if isinstance(content, bytes) else b"")
        if entry is not None:
            files[name] = entry
        return f"{name} {describe}"

    return change


def _rename(rng: random.Random, files: Files) -> str:
    name = _any_file(rng, files)
    stem, _, suffix = name.rpartition(".")
    new = rng.choice([f"{stem} (1).{suffix}", name.upper(), f"{name}.bak", f"{stem}-copy.{suffix}", f"my-{name}"])
    files[new] = files.pop(name, b"")
    return f"{name} renamed to {new}"


def _duplicate(rng: random.Random, files: Files) -> str:
    name = _any_file(rng, files)
    stem, _, suffix = name.rpartition(".")
    files[f"{stem}-copy.{suffix}"] = files.get(name, b"")
    return f"{name} duplicated"


def _add_file(rng: random.Random, files: Files) -> str:
    name = rng.choice(EXTRA_FILES)
    files[name] = rng.choice((b"", b"x", b"{}", b"\xff\xfe\xff"))
    return f"extra {name}"


def _add_folder(rng: random.Random, files: Files) -> str:
    name = rng.choice(("onnx", "original", ".cache", "additional_chat_templates", "model.safetensors.d"))
    files[name] = Folder()
    return f"extra folder {name}"


def _damage_index(rng: random.Random, files: Files) -> str:
    files[INDEX] = rng.choice(
        (b"", b"x", b"[]", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b'{"weight_map": []}')
    )
    return "damaged index"


def _text_only(edit: Callable[[str], bytes]) -> Callable[[random.Random, bytes], Entry]:
    def apply(rng: random.Random, content: bytes) -> Entry:
        try:
            return edit(content.decode())
        except UnicodeDecodeError:
            return content

    return apply


CHANGES: tuple[Callable[[random.Random, Files], str], ...] = (
    _change("missing", lambda rng, content: None),
    _change("cut", lambda rng, content: content[: rng.randrange(len(content) or 1)]),
    # Not by a single byte: a JSON file that still ends in a brace is only found by parsing all of it.
    _change("cut by two bytes", lambda rng, content: content[:-2]),
    _change("empty", lambda rng, content: b""),
    _change("replaced by an LFS pointer", lambda rng, content: LFS_POINTER),
    _change("with a byte order mark", _text_only(lambda text: text.encode("utf-8-sig"))),
    _change("with a byte order mark", _text_only(lambda text: text.encode("utf-8-sig"))),
    _change("in UTF-16", _text_only(lambda text: text.encode("utf-16"))),
    _change("replaced by a folder", lambda rng, content: Folder()),
    _change("with a dangling link", lambda rng, content: Link("nothing")),
    _change("linked inside", lambda rng, content: Link("inside", content)),
    _change("linked inside", lambda rng, content: Link("inside", content)),
    _change("linked outside", lambda rng, content: Link("outside", content)),
    _rename,
    _duplicate,
    _add_file,
    _add_file,
    _add_folder,
    _damage_index,
)
