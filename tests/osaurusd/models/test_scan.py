"""Records of models on disk: their metadata, names, and whether they can be served."""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from osaurusd.models import tokenizers
from osaurusd.models.record import Capabilities, GenerationDefaults
from osaurusd.wire.admin import Availability

from .disk import index, model, repo_folder, scan, tensors, write, write_hub
from .test_names import GUIDE

ONE = "model-00001-of-00002.safetensors"
TWO = "model-00002-of-00002.safetensors"
OUTSIDE = "to a path outside the store; to allow it, add the target's folder to `models.roots`"
OTHER_COMMIT = "0ther" * 8


def single(records):
    assert len(records) == 1, records
    return records[0]


def without(files, *names):
    return {name: content for name, content in files.items() if name not in names}


def set_time(path, seconds):
    os.utime(path, (seconds, seconds), follow_symlinks=False)


def test_record_of_a_downloaded_model(models, hub):
    files = model(quantization={"bits": 4, "group_size": 64}, max_position_embeddings=8192)
    files["generation_config.json"] = b'{"temperature": 0.6}'
    files["chat_template.jinja"] = b"{{ messages }} {{ tools }}"
    snapshot = write_hub(hub, "Org/Some-Model-it-4bit", files)
    record = single(scan(models, hub))

    assert record.name == "some-model-instruct"
    assert record.repo == "Org/Some-Model-it-4bit"
    assert record.path == snapshot
    assert record.source == "hub"
    assert (record.state, record.reason) == (Availability.AVAILABLE, None)
    assert record.size_bytes == sum(len(content) for content in files.values())
    assert record.architecture == "llama"
    assert record.quantization == "4-bit"
    assert record.context_length == 8192
    assert record.generation == GenerationDefaults(temperature=0.6)
    assert record.task == "generate"
    assert record.capabilities == Capabilities(chat=True, tools=True)


CARD = b"---\nlicense: apache-2.0\npipeline_tag: text-ranking\n---\n# A model\n"


@pytest.mark.parametrize(
    ("repo", "files", "task"),
    [
        ("mlx-community/Qwen3-Reranker-0.6B-mxfp8", {}, "rerank"),
        ("org/other", {"README.md": CARD}, "rerank"),
        ("org/other", {"README.md": CARD.replace(b"text-ranking", b"text-generation")}, "generate"),
        ("org/other", {"README.md": b"# A model\npipeline_tag: text-ranking\n"}, "generate"),
    ],
)
def test_a_language_model_that_ranks_documents_has_that_task(models, hub, repo, files, task):
    write_hub(hub, repo, model() | files)
    record = single(scan(models, hub))
    assert (record.task, record.runner, record.state) == (task, "text", Availability.AVAILABLE)
    assert record.capabilities.completion == (task == "generate")


def test_imported_model_is_named_after_its_folder(models, hub):
    write(models / "my-model-it-4bit", model())
    record = single(scan(models, hub))
    assert (record.name, record.repo, record.source) == ("my-model-it-4bit", "my-model-it-4bit", "imported")
    assert record.path == models / "my-model-it-4bit"
    assert record.state is Availability.AVAILABLE


def test_published_models_have_the_documented_names(models, hub):
    for repo in GUIDE:
        write_hub(hub, repo, model())
    records = scan(models, hub)
    assert {record.repo: record.name for record in records} == GUIDE
    assert [record.name for record in records] == sorted(GUIDE.values())
    assert {record.state for record in records} == {Availability.AVAILABLE}


SENTENCEPIECE = b"\x0a\x03abc\x12\x00"
BPE_FILES = {"vocab.json": b"{}", "merges.txt": b""}
GPT2 = {"tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer"}'}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": b"{}"},
        {"tokenizer.json": b'\xef\xbb\xbf{"a": 1}\n'},
        {"tokenizer.model": SENTENCEPIECE},
        {"tekken.json": b"{}"},
        {**BPE_FILES, **GPT2},
        {**BPE_FILES, "tokenizer_config.json": b'{"tokenizer_class": "Qwen2TokenizerFast"}'},
        {"spiece.model": SENTENCEPIECE, "tokenizer_config.json": b'{"tokenizer_class": "T5Tokenizer"}'},
    ],
    ids=lambda files: " ".join(files),
)
def test_any_kind_of_tokenizer_is_sufficient(models, hub, files):
    write_hub(hub, "org/m", without(model(), "tokenizer.json") | files)
    assert single(scan(models, hub)).state is Availability.AVAILABLE


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "cohere"])
def test_tokenizer_class_follows_from_the_architecture(models, hub, architecture):
    write_hub(hub, "org/m", without(model(model_type=architecture), "tokenizer.json") | BPE_FILES)
    assert single(scan(models, hub)).state is Availability.AVAILABLE


TOKENIZER = {"version": "1.0", "added_tokens": [{"id": {"a": 0}}], "model": {"vocab": {"a": 0}, "merges": []}}
PRETTY, COMPACT = (json.dumps(TOKENIZER, indent=indent).encode() for indent in (2, None))
UNUSUAL = json.dumps({**TOKENIZER, "note": "a value that is not an object"}).encode()


@pytest.mark.parametrize("content", [PRETTY, COMPACT, PRETTY + b"\n\n", UNUSUAL, b'{"a": {"b": 1}, "c": {}\n }'])
def test_whole_tokenizers_are_complete_in_any_format(models, hub, content):
    write_hub(hub, "org/m", model() | {"tokenizer.json": content})
    assert single(scan(models, hub)).state is Availability.AVAILABLE


@pytest.mark.parametrize(
    "content",
    [
        PRETTY[:-2],
        PRETTY[: PRETTY.index(b"}") + 1],
        COMPACT[:-1],
        COMPACT[: COMPACT.index(b"}") + 1],
        COMPACT[: COMPACT.index(b"}}") + 2],
    ],
    ids=["last line", "first bracket", "last byte", "first bracket of one line", "two brackets of one line"],
)
def test_tokenizer_that_is_cut_after_a_bracket_is_incomplete(models, hub, content):
    assert content.endswith(b"}")
    write_hub(hub, "org/m", model() | {"tokenizer.json": content})
    record = single(scan(models, hub))
    assert (record.state, record.reason) == (Availability.PARTIAL, "tokenizer.json is incomplete")


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"tokenizer_config.json": b"{}", "special_tokens_map.json": b"{}"}, "the tokenizer is missing"),
        (BPE_FILES, "the tokenizer is missing"),
        ({**GPT2, "vocab.json": b"{}"}, "the tokenizer is missing: GPT2Tokenizer needs merges.txt"),
        ({"spiece.model": SENTENCEPIECE}, "the tokenizer is missing"),
        ({"tokenizer.json": b""}, "tokenizer.json is incomplete"),
        ({"tokenizer.json": b'{"version": "1.0", "mod'}, "tokenizer.json is incomplete"),
        ({"tokenizer.json": LFS_POINTER}, "tokenizer.json is a Git LFS pointer instead of the file"),
        ({"tokenizer.model": LFS_POINTER}, "tokenizer.model is a Git LFS pointer instead of the file"),
        ({"tokenizer.model": SENTENCEPIECE[:-3]}, "tokenizer.model is incomplete"),
        ({"tokenizer.model": b""}, "tokenizer.model is incomplete"),
        ({**GPT2, **BPE_FILES, "vocab.json": b""}, "vocab.json is incomplete"),
    ],
)
def test_model_without_a_complete_tokenizer_is_partial(models, hub, files, reason):
    write_hub(hub, "org/m", without(model(), "tokenizer.json") | files)
    record = single(scan(models, hub))
    assert record.state is Availability.PARTIAL
    assert record.reason.startswith(reason)


def test_missing_package_of_the_tokenizer_is_named(models, hub, monkeypatch):
    monkeypatch.setattr(tokenizers, "find_spec", lambda name: None if name == "tiktoken" else find_spec(name))
    write_hub(hub, "org/m", without(model(), "tokenizer.json") | {"tiktoken.model": b"YQ== 0"})
    record = single(scan(models, hub))
    assert (record.state, record.reason) == (
        Availability.PARTIAL,
        "tiktoken.model requires the Python package `tiktoken`",
    )


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (b"YQ== 0\nYg== 1\n", Availability.AVAILABLE),
        (b"\xef\xbb\xbfYQ== 0\nYg== 1", Availability.AVAILABLE),
        (b"YQ== 0\nYg=", Availability.PARTIAL),
        (LFS_POINTER, Availability.PARTIAL),
    ],
    ids=["whole", "with a byte order mark", "cut", "pointer"],
)
def test_tiktoken_model_is_complete_if_its_first_and_last_line_are(models, hub, monkeypatch, content, state):
    monkeypatch.setattr(tokenizers, "find_spec", lambda name: object())
    write_hub(hub, "org/m", without(model(), "tokenizer.json") | {"tiktoken.model": content})
    assert state is single(scan(models, hub)).state


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_damaged_file_of_the_tokenizer_makes_a_model_unusable(models, hub, name):
    write_hub(hub, "org/m", {**model(), name: b'{"a'})
    record = single(scan(models, hub))
    assert record.state is Availability.UNUSABLE
    assert record.reason.startswith(f"{name} cannot be read: ")


def test_index_of_other_weights_does_not_matter(models, hub):
    write_hub(hub, "org/m", {**model(), "model.safetensors.index.json": index(ONE, TWO)})
    assert single(scan(models, hub)).state is Availability.AVAILABLE


@pytest.mark.parametrize("name", ["[a]", "a[1]b*?", "{x}"])
def test_names_may_contain_pattern_characters(models, hub, name):
    write(models / name, model())
    assert single(scan(models, hub)).state is Availability.AVAILABLE


@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json", "README.md", "model-1.safetensors"])
def test_pipes_do_not_block_the_scan(models, hub, name):
    folder = write(models / "m", model())
    os.mkfifo(folder / name)
    assert single(scan(models, hub)).name == "m"


@pytest.mark.parametrize("name", ["m", "models--m"])
def test_extra_root_may_itself_be_a_model_or_contain_one_of_any_name(models, hub, tmp_path, name):
    folder = write(tmp_path / "extra" / name, model())
    assert single(scan(models, hub, folder)).path == folder
    assert single(scan(models, hub, folder.parent)).path == folder


def test_remapped_architecture_is_available(models, hub):
    write_hub(hub, "org/m", model(model_type="mistral"))
    assert single(scan(models, hub)).state is Availability.AVAILABLE


PARTIAL = [
    pytest.param({}, "config.json is missing", id="empty"),
    pytest.param(without(model(), "config.json"), "config.json is missing", id="no config"),
    pytest.param(without(model(), "tokenizer.json"), "the tokenizer is missing", id="no tokenizer"),
    pytest.param(without(model(), "model.safetensors"), "no model*.safetensors", id="no weights"),
    pytest.param({**model(), "model.safetensors": tensors()[:-1]}, "model.safetensors: ", id="incomplete weights"),
    pytest.param(
        {**without(model(), "model.safetensors"), ONE: tensors(), "model.safetensors.index.json": index(ONE, TWO)},
        f"{TWO}: missing",
        id="missing shard",
    ),
]


@pytest.mark.parametrize(("files", "reason"), PARTIAL)
def test_incomplete_download_is_partial(models, hub, files, reason):
    write_hub(hub, "org/m", files)
    record = single(scan(models, hub))
    assert record.state is Availability.PARTIAL
    assert record.reason.startswith(reason)
    assert record.name == "m"


@pytest.mark.parametrize(("files", "reason"), PARTIAL)
def test_incomplete_import_is_partial(models, hub, files, reason):
    write(models / "m", files)
    record = single(scan(models, hub))
    assert record.state is Availability.PARTIAL
    assert record.reason.startswith(reason)


def test_link_to_a_missing_blob_counts_as_missing(models, hub):
    snapshot = write_hub(hub, "org/m", model())
    (snapshot / "tokenizer.json").resolve().unlink()
    record = single(scan(models, hub))
    assert (record.state, record.reason) == (Availability.PARTIAL, "the tokenizer is missing")


def test_ref_to_a_missing_snapshot_is_partial(models, hub):
    snapshot = write_hub(hub, "org/m", model())
    snapshot.rename(snapshot.with_name(OTHER_COMMIT))
    record = single(scan(models, hub))
    assert (record.state, record.reason) == (Availability.PARTIAL, "config.json is missing")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (model(model_type="nonsense"), "mlx_lm does not support the architecture `nonsense`"),
        (model(model_type=None), "config.json has no `model_type`"),
        (model(model_type=["llama"]), "config.json has no `model_type`"),
        (model(model_file="model.py"), "the model requires custom code (`model_file`)"),
        (
            {
                **without(model(), "tokenizer.json"),
                "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["own.Tokenizer", null]}}',
            },
            "the tokenizer requires custom code (`auto_map`)",
        ),
        ({**model(), "config.json": b"garbage"}, "config.json cannot be read: "),
        ({**model(), "config.json": b"\xff\xff\xff"}, "config.json cannot be read: "),
        (
            {**model(), "config.json": b"[]"},
            "config.json cannot be read: config.json must contain a JSON object",
        ),
        ({**model(), "config.json": b""}, "config.json cannot be read: "),
    ],
)
def test_incompatible_model_is_unusable(models, hub, files, reason):
    write_hub(hub, "org/m", files)
    record = single(scan(models, hub))
    assert record.state is Availability.UNUSABLE
    assert record.reason.startswith(reason)


def test_model_with_custom_code_is_unusable_even_without_weights(models, hub):
    write_hub(hub, "org/m", without(model(model_file="model.py"), "model.safetensors"))
    assert single(scan(models, hub)).state is Availability.UNUSABLE


def test_links_may_only_lead_into_roots(models, hub, tmp_path):
    write(tmp_path / "elsewhere", model())
    (models / "linked").symlink_to(tmp_path / "elsewhere")
    record = single(scan(models, hub))
    assert record.state is Availability.UNUSABLE
    assert record.reason.endswith(f"is a link {OUTSIDE}")
    records = scan(models, hub, tmp_path / "elsewhere")
    assert {record.name: record.state for record in records}["linked"] is Availability.AVAILABLE


def test_link_out_of_the_store_makes_a_model_unusable(models, hub, tmp_path):
    snapshot = write_hub(hub, "org/m", without(model(), "tokenizer.json"))
    (tmp_path / "secret").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "secret")
    record = single(scan(models, hub))
    assert (record.state, record.reason) == (
        Availability.UNUSABLE,
        f"tokenizer.json is a link {OUTSIDE}",
    )


@pytest.mark.parametrize("link", ["additional_chat_templates", "additional_chat_templates/tool_use.jinja"])
def test_template_outside_the_store_makes_a_model_unusable(models, hub, tmp_path, link):
    folder = write(models / "m", model())
    write(tmp_path / "elsewhere", {"tool_use.jinja": b"secret"})
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(tmp_path / "elsewhere" / ("tool_use.jinja" if "/" in link else ""))
    record = single(scan(models, hub))
    assert (record.state, record.reason) == (Availability.UNUSABLE, f"{link} is a link {OUTSIDE}")
    assert record.escapes


def test_named_templates_belong_to_a_model(models, hub):
    folder = write(models / "m", model())
    templates = {"tool_use.jinja": b"{{ tools }}{{ messages }}", "notes.txt": b"not a template"}
    write(folder / "additional_chat_templates", templates)
    record = single(scan(models, hub))
    assert (record.state, record.escapes) == (Availability.AVAILABLE, False)
    assert ("additional_chat_templates/tool_use.jinja", 25) in record.files
    assert "additional_chat_templates/notes.txt" not in dict(record.files)
    assert record.capabilities.tools
    assert record.capabilities.chat


def test_huge_config_is_not_read(models, hub):
    folder = write(models / "m", model())
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**40)
    record = single(scan(models, hub))
    assert record.state is Availability.UNUSABLE
    assert "larger than" in record.reason


def test_unused_custom_tokenizer_is_allowed(models, hub):
    files = {
        **model(auto_map={"AutoModel": "own.Model"}),
        "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": 1}}',
    }
    write_hub(hub, "org/m", files)
    assert single(scan(models, hub)).state is Availability.AVAILABLE


def test_creation_time_of_a_download_is_that_of_its_link(models, hub):
    snapshot = write_hub(hub, "org/m", model())
    set_time((snapshot / "config.json").resolve(), 1_500_000_000)
    set_time(snapshot / "config.json", 1_738_193_123)
    set_time(snapshot, 1_600_000_000)
    assert single(scan(models, hub)).created == 1_738_193_123


def test_creation_time_of_an_import_is_that_of_its_config(models, hub):
    folder = write(models / "m", model())
    set_time(folder / "config.json", 1_738_193_123)
    assert single(scan(models, hub)).created == 1_738_193_123


def test_creation_time_without_a_config_is_that_of_the_folder(models, hub):
    set_time(write(models / "m", {}), 1_738_193_123)
    assert single(scan(models, hub)).created == 1_738_193_123


def test_older_model_has_priority_for_a_name(models, hub):
    for at, repo in enumerate(["two/m", "one/m"]):
        set_time(write_hub(hub, repo, model()) / "config.json", 1_700_000_000 + at)
    assert {record.repo: record.name for record in scan(models, hub)} == {"two/m": "m", "one/m": "one/m"}


def test_available_model_has_priority_for_a_name(models, hub):
    for at, (repo, files) in enumerate([("one/m", without(model(), "tokenizer.json")), ("two/m", model())]):
        set_time(write_hub(hub, repo, files) / "config.json", 1_700_000_000 + at)
    assert {record.repo: record.name for record in scan(models, hub)} == {"one/m": "one/m", "two/m": "m"}


def test_name_stays_with_its_model(models, hub):
    late = write_hub(hub, "one/m", without(model(), "tokenizer.json"))
    set_time(late / "config.json", 1_700_000_000)
    set_time(write_hub(hub, "two/m", model()) / "config.json", 1_700_000_001)
    before = {record.repo: record.name for record in scan(models, hub)}
    write(late, {"tokenizer.json": b"{}"})
    assert {record.repo: record.name for record in scan(models, hub)}["two/m"] == before["two/m"]


def test_second_copy_of_a_repository_is_identified_by_its_path(models, hub):
    write(models / "gpt2", model())
    snapshot = write_hub(hub, "gpt2", model())
    assert {record.source: record.repo for record in scan(models, hub)} == {"imported": "gpt2", "hub": str(snapshot)}


def damage_config(root):
    (root / "config.json").write_bytes(b"[" * 100_000)


def damage_generation_config(root):
    (root / "generation_config.json").write_bytes(b"[" * 100_000)


def damage_header(root):
    (root / "model.safetensors").write_bytes(b"\x50\xc3\0\0\0\0\0\0" + b"[" * 50_000)


def damage_links(root):
    (root / "loop").symlink_to("loop")


@pytest.mark.parametrize("damage", [damage_config, damage_generation_config, damage_header, damage_links])
def test_damaged_folder_does_not_hide_other_models(models, hub, damage):
    write(models / "good", model())
    damage(write(models / "bad", model()))
    records = {record.name: record.state for record in scan(models, hub)}
    assert records["good"] is Availability.AVAILABLE


@pytest.mark.parametrize("ref", [b"\xff\xfe", b"a\0b", b"", b"x" * 5000], ids=["invalid UTF-8", "NUL", "empty", "long"])
def test_damaged_ref_does_not_hide_other_models(models, hub, ref):
    write(models / "good", model())
    write_hub(hub, "org/bad", model())
    (repo_folder(hub, "org/bad") / "refs" / "main").write_bytes(ref)
    records = {record.name: record.state for record in scan(models, hub)}
    assert records["good"] is Availability.AVAILABLE


def test_records_can_be_encoded_as_json(models, hub):
    write(models / "good", model())
    try:
        Path(os.fsdecode(os.fsencode(models) + b"/\xff\xfe")).mkdir()
    except OSError:
        pytest.skip("the file system rejects such names")
    for record in scan(models, hub):
        msgspec.json.encode([record.name, record.repo, str(record.path), record.reason])


def test_deleted_model_disappears(models, hub):
    write_hub(hub, "org/m", model())
    assert len(scan(models, hub)) == 1
    shutil.rmtree(repo_folder(hub, "org/m"))
    assert scan(models, hub) == []
