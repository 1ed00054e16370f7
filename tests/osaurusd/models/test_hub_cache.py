"""Hugging Face caches that the unmodified huggingface_hub has filled."""

import pytest

from osaurusd.wire.admin import Availability
from tests.fakes import hub as fake_hub
from tests.osaurusd.models.worker.conftest import download

from .disk import index, model, scan, tensors

OLD, NEW = "a" * 40, "b" * 40
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDED = {
    **{name: content for name, content in model().items() if name != "model.safetensors"},
    ONE: tensors(1000),
    TWO: tensors(2000, layer="second."),
    "model.safetensors.index.json": index(ONE, TWO),
}
PUBLISHED_REPO, SHARDED_REPO = "mlx-community/Llama-3.2-1B-Instruct-4bit", "org/Sharded-8bit"
REPOS = {PUBLISHED_REPO: {OLD: model(n_ctx=1), NEW: model(n_ctx=2)}, SHARDED_REPO: {NEW: SHARDED}}


@pytest.fixture
def complete_download(hub, tmp_path):
    """Fill the cache with two revisions and an incomplete download; returns a function that completes the latter."""
    with fake_hub.serving(tmp_path / "root", REPOS) as url:
        requests = [
            {"repo_id": PUBLISHED_REPO, "revision": OLD},
            {"repo_id": PUBLISHED_REPO},
            {"repo_id": SHARDED_REPO, "ignore_patterns": [TWO]},
        ]
        download(url, hub, tmp_path / "hf", *requests)
        yield lambda: download(url, hub, tmp_path / "hf", {"repo_id": SHARDED_REPO})


@pytest.mark.usefixtures("complete_download")
def test_current_revision_is_available_under_the_published_name(models, hub):
    record = next(record for record in scan(models, hub) if record.name == "llama-3.2-1b-instruct")

    assert record.state is Availability.AVAILABLE
    assert (record.path.name, record.context_length) == (NEW, 2)


def test_download_without_a_shard_is_partial_until_it_is_completed(complete_download, models, hub):
    (before,) = (record for record in scan(models, hub) if record.name == "sharded-8bit")
    assert before.state is Availability.PARTIAL
    assert TWO in before.reason

    complete_download()
    (after,) = (record for record in scan(models, hub) if record.name == "sharded-8bit")
    assert (after.state, after.size_bytes) == (Availability.AVAILABLE, sum(map(len, SHARDED.values())))
