"""Which folders of the roots are models, and where the Hugging Face cache is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from osaurusd.models.roots import STAGING_PREFIXES, hub_cache

from .disk import model, repo_folder, scan, write, write_hub

OTHER_COMMIT = "0ther" * 8


def single(records):
    assert len(records) == 1, records
    return records[0]


def set_time(path, seconds):
    os.utime(path, (seconds, seconds), follow_symlinks=False)


def test_missing_roots_have_no_models(models, hub, tmp_path):
    assert scan(models, hub) == []
    assert scan(tmp_path / "no models", tmp_path / "no hub") == []


def test_main_selects_the_snapshot(models, hub):
    old = write_hub(hub, "org/m", model())
    new = write_hub(hub, "org/m", model(n_ctx=1), OTHER_COMMIT, main=False)
    set_time(new, 2_000_000_000)
    assert single(scan(models, hub)).path == old
    (repo_folder(hub, "org/m") / "refs" / "main").write_text(f"{OTHER_COMMIT}\n")
    assert single(scan(models, hub)).path == new


def test_newest_snapshot_is_selected_without_main(models, hub):
    old = write_hub(hub, "org/m", model(), main=False)
    new = write_hub(hub, "org/m", model(n_ctx=1), OTHER_COMMIT, main=False)
    set_time(old, 1_000_000_000)
    set_time(new, 1_000_000_001)
    assert single(scan(models, hub)).path == new
    set_time(old, 1_000_000_002)
    assert single(scan(models, hub)).path == old


def test_repository_without_snapshots_is_ignored(models, hub):
    (repo_folder(hub, "org/m") / "blobs").mkdir(parents=True)
    assert scan(models, hub) == []


def test_files_and_broken_links_are_ignored(models, hub):
    (models / "notes.txt").write_text("")
    (hub / "models--org--m").write_text("")
    (hub / "version.txt").write_text("1")
    (models / "dangling").symlink_to(models / "nowhere")
    assert scan(models, hub) == []


def test_roots_that_are_files_have_no_models(tmp_path):
    for name in ("models", "hub"):
        (tmp_path / name).write_text("")
    assert scan(tmp_path / "models", tmp_path / "hub") == []


@pytest.mark.parametrize("ref", ["../../secret", "..", ".", "a/b"])
def test_ref_cannot_lead_out_of_its_repository(models, hub, tmp_path, ref):
    write_hub(hub, "org/m", model())
    write(hub / "secret", model())
    (repo_folder(hub, "org/m") / "refs" / "main").write_text(ref)
    assert scan(models, hub) == []


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
def test_other_folders_are_ignored(models, hub, path):
    write(models.parent / path, model())
    assert scan(models, hub) == []


def test_extra_roots_have_models_at_both_levels_and_in_cache_layout(models, hub, tmp_path):
    extra = tmp_path / "extra"
    write(extra / "flat", model())
    write(extra / "org" / "Deep-it-4bit", model())
    write(extra / ".hidden", model())
    write_hub(extra, "org2/cached", model())

    assert {record.name: record.source for record in scan(models, hub, extra)} == {
        "flat": "extra",
        "deep-instruct": "extra",
        "cached": "extra",
    }


@pytest.mark.parametrize(
    ("env", "path"),
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
def test_hub_cache_follows_the_environment(monkeypatch, env, path):
    monkeypatch.setenv("HOME", "/home/u")
    assert str(hub_cache(env)) == path


def test_hub_cache_is_the_same_as_in_huggingface_hub(monkeypatch):
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
paths = []
for settings in json.loads(sys.argv[1]):
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ.update(settings)
    paths.append(importlib.reload(constants).HF_HUB_CACHE)
print(json.dumps(paths))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, json.dumps(settings)], capture_output=True, text=True, check=True
    )
    assert [str(hub_cache(env)) for env in settings] == json.loads(run.stdout)


def test_hub_cache_uses_the_process_environment_by_default(monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/somewhere")
    assert hub_cache() == Path("/somewhere")
