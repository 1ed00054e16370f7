"""What lies on disk becomes records: where models are found, and which of them can be served."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from osaurusd.models.record import GenerationDefaults
from osaurusd.models.roots import STAGING_PREFIXES, hub_cache
from osaurusd.wire.admin import ModelState

from .disk import index, model, repo_folder, scan, tensors, write, write_hub
from .test_names import GUIDE

ONE = "model-00001-of-00002.safetensors"
TWO = "model-00002-of-00002.safetensors"
OTHER_COMMIT = "0ther" * 8


def only(records):
    assert len(records) == 1, records
    return records[0]


def without(files, *names):
    return {name: content for name, content in files.items() if name not in names}


def set_time(path, seconds):
    os.utime(path, (seconds, seconds), follow_symlinks=False)


def test_nothing_is_found_where_nothing_is(models, hub, tmp_path):
    assert scan(models, hub) == []
    assert scan(tmp_path / "no models", tmp_path / "no hub") == []


def test_a_model_in_the_hub_cache_is_found_with_all_there_is_to_know(models, hub):
    files = model(quantization={"bits": 4, "group_size": 64}, max_position_embeddings=8192)
    files["generation_config.json"] = b'{"temperature": 0.6}'
    snapshot = write_hub(hub, "Org/Some-Model-it-4bit", files)
    record = only(scan(models, hub))
    assert record.name == "some-model-instruct"
    assert record.repo == "Org/Some-Model-it-4bit"
    assert record.path == snapshot
    assert record.source == "hub"
    assert (record.state, record.reason) == (ModelState.AVAILABLE, None)
    assert record.size_bytes == sum(len(content) for content in files.values())
    assert record.architecture == "llama"
    assert record.quantization == "4-bit"
    assert record.context_length == 8192
    assert record.generation == GenerationDefaults(temperature=0.6)


def test_an_imported_model_is_found_by_its_folders_name(models, hub):
    write(models / "my-model-it-4bit", model())
    record = only(scan(models, hub))
    assert (record.name, record.repo, record.source) == ("my-model-it-4bit", "my-model-it-4bit", "imported")
    assert record.path == models / "my-model-it-4bit"
    assert record.state is ModelState.AVAILABLE


def test_all_models_of_the_guide_have_their_names(models, hub):
    for repo in GUIDE:
        write_hub(hub, repo, model())
    records = scan(models, hub)
    assert {record.repo: record.name for record in records} == GUIDE
    assert [record.name for record in records] == sorted(GUIDE.values())
    assert {record.state for record in records} == {ModelState.AVAILABLE}


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json"])
def test_any_tokenizer_will_do(models, hub, tokenizer):
    write_hub(hub, "org/m", {**without(model(), "tokenizer.json"), tokenizer: b"{}"})
    assert only(scan(models, hub)).state is ModelState.AVAILABLE


def test_an_architecture_that_is_built_as_another_will_do(models, hub):
    write_hub(hub, "org/m", model(model_type="mistral"))
    assert only(scan(models, hub)).state is ModelState.AVAILABLE


PARTIAL = [
    pytest.param({}, "config.json is missing", id="nothing"),
    pytest.param(without(model(), "config.json"), "config.json is missing", id="no config"),
    pytest.param(without(model(), "tokenizer.json"), "no tokenizer", id="no tokenizer"),
    pytest.param(without(model(), "model.safetensors"), "no model*.safetensors", id="no weights"),
    pytest.param(
        {**model(), "model.safetensors": tensors()[:-1]}, "model.safetensors: ", id="weights that are still arriving"
    ),
    pytest.param(
        {**without(model(), "model.safetensors"), ONE: tensors(), "model.safetensors.index.json": index(ONE, TWO)},
        f"{TWO}: missing",
        id="a missing shard",
    ),
]


@pytest.mark.parametrize(("files", "reason"), PARTIAL)
def test_an_incomplete_download_is_partial_and_says_why(models, hub, files, reason):
    write_hub(hub, "org/m", files)
    record = only(scan(models, hub))
    assert record.state is ModelState.PARTIAL
    assert record.reason.startswith(reason)
    assert record.name == "m"


@pytest.mark.parametrize(("files", "reason"), PARTIAL)
def test_an_incomplete_folder_is_partial_and_says_why(models, hub, files, reason):
    write(models / "m", files)
    record = only(scan(models, hub))
    assert record.state is ModelState.PARTIAL
    assert record.reason.startswith(reason)


def test_a_file_whose_blob_is_gone_is_not_there(models, hub):
    snapshot = write_hub(hub, "org/m", model())
    (snapshot / "tokenizer.json").resolve().unlink()
    record = only(scan(models, hub))
    assert (record.state, record.reason) == (ModelState.PARTIAL, "no tokenizer")


def test_a_ref_to_a_snapshot_that_is_still_to_come_is_partial(models, hub):
    snapshot = write_hub(hub, "org/m", model())
    snapshot.rename(snapshot.with_name(OTHER_COMMIT))
    record = only(scan(models, hub))
    assert (record.state, record.reason) == (ModelState.PARTIAL, "config.json is missing")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (model(model_type="nonsense"), "mlx_lm has no architecture `nonsense`"),
        (model(model_type=None), "mlx_lm has no architecture `None`"),
        (model(model_type=["llama"]), "mlx_lm has no architecture `None`"),
        (model(model_file="model.py"), "it needs code of its own (`model_file`), which is never run"),
        (
            {
                **without(model(), "tokenizer.json"),
                "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["own.Tokenizer", null]}}',
            },
            "its tokenizer needs code of its own (`auto_map`), which is never run",
        ),
        ({**model(), "config.json": b"garbage"}, "config.json cannot be read: "),
        ({**model(), "config.json": b"\xff\xff\xff"}, "config.json cannot be read: "),
        ({**model(), "config.json": b"[]"}, "config.json cannot be read: config.json holds a list"),
        ({**model(), "config.json": b""}, "config.json cannot be read: "),
    ],
)
def test_a_model_that_can_never_be_served_is_unusable_and_says_why(models, hub, files, reason):
    write_hub(hub, "org/m", files)
    record = only(scan(models, hub))
    assert record.state is ModelState.UNUSABLE
    assert record.reason.startswith(reason)


def test_code_of_its_own_is_refused_even_without_weights(models, hub):
    write_hub(hub, "org/m", without(model(model_file="model.py"), "model.safetensors"))
    assert only(scan(models, hub)).state is ModelState.UNUSABLE


@pytest.mark.parametrize(
    "path",
    [
        f"models/{STAGING_PREFIXES[0]}0123",
        f"models/{STAGING_PREFIXES[1]}0123",
        "models/.hidden",
        "hub/datasets--org--m/snapshots/x",
        "hub/spaces--org--m/snapshots/x",
        "hub/.locks/models--org--m",
        "hub/org--m/snapshots/x",
        "hub/models/snapshots/x",
        "hub/models--org--m/blobs",
        "elsewhere/m",
    ],
)
def test_other_folders_are_no_models(models, hub, path):
    write(models.parent / path, model())
    assert scan(models, hub) == []


def test_files_among_the_folders_are_no_models(models, hub):
    (models / "notes.txt").write_text("")
    (hub / "models--org--m").write_text("")
    (hub / "version.txt").write_text("1")
    (models / "dangling").symlink_to(models / "nowhere")
    assert scan(models, hub) == []


def test_files_in_place_of_the_folders_are_no_models(tmp_path):
    for name in ("models", "hub"):
        (tmp_path / name).write_text("")
    assert scan(tmp_path / "models", tmp_path / "hub") == []


def test_links_may_lead_anywhere_inside_the_roots_and_nowhere_else(models, hub, tmp_path):
    write(tmp_path / "elsewhere", model())
    (models / "linked").symlink_to(tmp_path / "elsewhere")
    record = only(scan(models, hub))
    assert record.state is ModelState.UNUSABLE
    assert record.reason.endswith("links to a place outside the store")
    records = scan(models, hub, tmp_path / "elsewhere")
    assert {record.name: record.state for record in records}["linked"] is ModelState.AVAILABLE


def test_a_single_file_that_leads_out_makes_a_model_unusable(models, hub, tmp_path):
    snapshot = write_hub(hub, "org/m", without(model(), "tokenizer.json"))
    (tmp_path / "secret").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "secret")
    record = only(scan(models, hub))
    assert (record.state, record.reason) == (
        ModelState.UNUSABLE,
        "tokenizer.json links to a place outside the store",
    )


@pytest.mark.parametrize("link", ["additional_chat_templates", "additional_chat_templates/tool_use.jinja"])
def test_templates_that_lead_out_make_a_model_unusable(models, hub, tmp_path, link):
    folder = write(models / "m", model())
    write(tmp_path / "elsewhere", {"tool_use.jinja": b"secret"})
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(tmp_path / "elsewhere" / ("tool_use.jinja" if "/" in link else ""))
    record = only(scan(models, hub))
    assert (record.state, record.reason) == (ModelState.UNUSABLE, f"{link} links to a place outside the store")
    assert record.escapes


def test_templates_that_stay_do_no_harm(models, hub):
    folder = write(models / "m", model())
    write(folder / "additional_chat_templates", {"tool_use.jinja": b"{{ messages }}"})
    record = only(scan(models, hub))
    assert (record.state, record.escapes) == (ModelState.AVAILABLE, False)


def test_a_config_that_never_ends_is_not_read_to_its_end(models, hub):
    folder = write(models / "m", model())
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**40)
    record = only(scan(models, hub))
    assert record.state is ModelState.UNUSABLE
    assert "larger than" in record.reason


def test_a_tokenizer_that_only_mentions_code_will_do(models, hub):
    files = {
        **model(auto_map={"AutoModel": "own.Model"}),
        "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": 1}}',
    }
    write_hub(hub, "org/m", files)
    assert only(scan(models, hub)).state is ModelState.AVAILABLE


def test_main_says_which_snapshot_counts(models, hub):
    old = write_hub(hub, "org/m", model())
    new = write_hub(hub, "org/m", model(n_ctx=1), OTHER_COMMIT, main=False)
    set_time(new, 2_000_000_000)
    assert only(scan(models, hub)).path == old
    (repo_folder(hub, "org/m") / "refs" / "main").write_text(f"{OTHER_COMMIT}\n")
    assert only(scan(models, hub)).path == new


def test_without_main_the_newest_snapshot_counts(models, hub):
    old = write_hub(hub, "org/m", model(), main=False)
    new = write_hub(hub, "org/m", model(n_ctx=1), OTHER_COMMIT, main=False)
    set_time(old, 1_000_000_000)
    set_time(new, 1_000_000_001)
    assert only(scan(models, hub)).path == new
    set_time(old, 1_000_000_002)
    assert only(scan(models, hub)).path == old


def test_a_repo_without_snapshots_is_no_model(models, hub):
    (repo_folder(hub, "org/m") / "blobs").mkdir(parents=True)
    assert scan(models, hub) == []


def test_a_hub_model_came_when_its_link_was_made(models, hub):
    snapshot = write_hub(hub, "org/m", model())
    set_time((snapshot / "config.json").resolve(), 1_500_000_000)
    set_time(snapshot / "config.json", 1_738_193_123)
    set_time(snapshot, 1_600_000_000)
    assert only(scan(models, hub)).created == 1_738_193_123


def test_an_imported_model_came_when_its_config_was_written(models, hub):
    folder = write(models / "m", model())
    set_time(folder / "config.json", 1_738_193_123)
    assert only(scan(models, hub)).created == 1_738_193_123


def test_a_model_without_a_config_came_when_its_folder_did(models, hub):
    set_time(write(models / "m", {}), 1_738_193_123)
    assert only(scan(models, hub)).created == 1_738_193_123


def test_of_two_that_want_a_name_the_one_that_came_first_gets_it(models, hub):
    for at, repo in enumerate(["two/m", "one/m"]):
        set_time(write_hub(hub, repo, model()) / "config.json", 1_700_000_000 + at)
    assert {record.repo: record.name for record in scan(models, hub)} == {"two/m": "m", "one/m": "one/m"}


def test_a_model_that_can_be_served_gets_a_name_before_one_that_cannot(models, hub):
    for at, (repo, files) in enumerate([("one/m", without(model(), "tokenizer.json")), ("two/m", model())]):
        set_time(write_hub(hub, repo, files) / "config.json", 1_700_000_000 + at)
    assert {record.repo: record.name for record in scan(models, hub)} == {"one/m": "one/m", "two/m": "m"}


def test_a_name_once_given_stays_with_its_model(models, hub):
    late = write_hub(hub, "one/m", without(model(), "tokenizer.json"))
    set_time(late / "config.json", 1_700_000_000)
    set_time(write_hub(hub, "two/m", model()) / "config.json", 1_700_000_001)
    before = {record.repo: record.name for record in scan(models, hub)}
    write(late, {"tokenizer.json": b"{}"})
    assert {record.repo: record.name for record in scan(models, hub)}["two/m"] == before["two/m"]


def test_a_repo_that_is_in_two_places_goes_by_its_path_in_the_second(models, hub):
    write(models / "gpt2", model())
    snapshot = write_hub(hub, "gpt2", model())
    assert {record.source: record.repo for record in scan(models, hub)} == {"imported": "gpt2", "hub": str(snapshot)}


@pytest.mark.parametrize("ref", ["../../secret", "..", ".", "a/b"])
def test_a_ref_cannot_lead_out_of_its_repo(models, hub, tmp_path, ref):
    write_hub(hub, "org/m", model())
    write(hub / "secret", model())
    (repo_folder(hub, "org/m") / "refs" / "main").write_text(ref)
    assert scan(models, hub) == []


def break_config(root):
    (root / "config.json").write_bytes(b"[" * 100_000)


def break_generation_config(root):
    (root / "generation_config.json").write_bytes(b"[" * 100_000)


def break_header(root):
    (root / "model.safetensors").write_bytes(b"\x50\xc3\0\0\0\0\0\0" + b"[" * 50_000)


def break_links(root):
    (root / "loop").symlink_to("loop")


@pytest.mark.parametrize("damage", [break_config, break_generation_config, break_header, break_links])
def test_a_broken_folder_does_not_hide_the_others(models, hub, damage):
    write(models / "good", model())
    damage(write(models / "bad", model()))
    records = {record.name: record.state for record in scan(models, hub)}
    assert records["good"] is ModelState.AVAILABLE


@pytest.mark.parametrize("ref", [b"\xff\xfe", b"a\0b", b"", b"x" * 5000], ids=["no UTF-8", "NUL", "empty", "long"])
def test_a_broken_ref_does_not_hide_the_others(models, hub, ref):
    write(models / "good", model())
    write_hub(hub, "org/bad", model())
    (repo_folder(hub, "org/bad") / "refs" / "main").write_bytes(ref)
    records = {record.name: record.state for record in scan(models, hub)}
    assert records["good"] is ModelState.AVAILABLE


def test_names_and_paths_can_travel_as_json(models, hub):
    write(models / "good", model())
    try:
        Path(os.fsdecode(os.fsencode(models) + b"/\xff\xfe")).mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    for record in scan(models, hub):
        msgspec.json.encode([record.name, record.repo, str(record.path), record.reason])


def test_a_model_that_goes_is_gone(models, hub):
    write_hub(hub, "org/m", model())
    assert len(scan(models, hub)) == 1
    shutil.rmtree(repo_folder(hub, "org/m"))
    assert scan(models, hub) == []


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, "/home/u/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/huggingface/hub"),
        ({"HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg"}, "/hf/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg"}, "/old"),
        ({"HF_HUB_CACHE": "/c", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/hf"}, "/c"),
        ({"HF_HOME": "~/hf"}, "/home/u/hf/hub"),
        ({"HF_HUB_CACHE": "~/c"}, "/home/u/c"),
        ({"HF_HUB_CACHE": "relative"}, "relative"),
    ],
)
def test_the_hub_cache_is_where_the_environment_says(monkeypatch, env, place):
    monkeypatch.setenv("HOME", "/home/u")
    assert str(hub_cache(env)) == place


def test_the_hub_cache_is_where_huggingface_hub_has_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setenv("ELSEWHERE", "/elsewhere")
    settings = [
        {},
        {"XDG_CACHE_HOME": "/xdg"},
        {"HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg"},
        {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/hf"},
        {"HF_HUB_CACHE": "/c", "HUGGINGFACE_HUB_CACHE": "/old"},
        {"HF_HUB_CACHE": "~/c"},
        {"HF_HOME": "$ELSEWHERE/hf"},
        {"HF_HUB_CACHE": "${ELSEWHERE}/c"},
    ]
    script = """
import importlib, json, os, sys
from huggingface_hub import constants
found = []
for settings in json.loads(sys.argv[1]):
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ.update(settings)
    found.append(importlib.reload(constants).HF_HUB_CACHE)
print(json.dumps(found))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, json.dumps(settings)], capture_output=True, text=True, check=True
    )
    assert [str(hub_cache(env)) for env in settings] == json.loads(run.stdout)


def test_the_environment_is_read_by_default(monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/somewhere")
    assert hub_cache() == Path("/somewhere")
