"""Caches that the unmodified client of the Hugging Face hub has filled are read as it meant them."""

import pytest

from osaurusd.wire.admin import ModelState
from tests.fakes import hub as hub_server
from tests.osaurusd.models.worker.conftest import download

from .disk import index, model, scan, tensors

OLD, NEW = "a" * 40, "b" * 40
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDED = {
    **{name: content for name, content in model().items() if name != "model.safetensors"},
    ONE: tensors(1000),
    TWO: tensors(2000),
    "model.safetensors.index.json": index(ONE, TWO),
}
REPOS = {
    "mlx-community/Llama-3.2-1B-Instruct-4bit": {OLD: model(n_ctx=1), NEW: model(n_ctx=2)},
    "org/Sharded-8bit": {NEW: SHARDED},
}


@pytest.fixture
def filled(hub, tmp_path):
    """The cache after two whole downloads and one that left a shard out."""
    with hub_server.serving(tmp_path / "root", REPOS) as url:
        whole, sharded = REPOS
        wanted = [
            {"repo_id": whole, "revision": OLD},
            {"repo_id": whole},
            {"repo_id": sharded, "ignore_patterns": [TWO]},
        ]
        download(url, hub, tmp_path / "hf", *wanted)
        yield lambda **more: download(url, hub, tmp_path / "hf", {"repo_id": sharded, **more})


def test_the_revision_that_main_means_is_served_under_the_published_name(filled, models, hub):
    records = {record.name: record for record in scan(models, hub)}
    record = records["llama-3.2-1b-instruct"]
    assert record.state is ModelState.AVAILABLE
    assert (record.path.name, record.context_length) == (NEW, 2)


def test_a_download_that_left_a_shard_out_is_partial_until_it_is_complete(filled, models, hub):
    (before,) = (record for record in scan(models, hub) if record.name == "sharded-8bit")
    assert (before.state, before.reason) == (ModelState.PARTIAL, f"{TWO}: missing")
    filled()
    (after,) = (record for record in scan(models, hub) if record.name == "sharded-8bit")
    assert (after.state, after.size_bytes) == (ModelState.AVAILABLE, sum(map(len, SHARDED.values())))
