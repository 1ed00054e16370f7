"""A page of a few files, and a monitor of models that exist on disk only."""

from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from osaurusd.activity import Activity
from osaurusd.config import Config
from osaurusd.pool.metrics import PoolMetrics
from osaurusd.pool.snapshot import MemoryBudget
from osaurusd.ui.monitor import Monitor
from tests.osaurusd.models import disk

DOCUMENT = '<!doctype html><meta name="osaurus-mode" content="public"><title>osaurusd</title>'


class FakePool:
    """A pool whose workers are set by the test."""

    def __init__(self):
        self.workers = []
        self.budget = MemoryBudget(total_bytes=8_000_000_000, used_bytes=0)

    def snapshot(self):
        return self.workers

    def needs_bytes(self, record):
        return record.size_bytes


@pytest.fixture
def page_folder(tmp_path):
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text(DOCUMENT)
    (folder / "assets" / "index-1a2b.js").write_text("document.title;")
    (folder / "assets" / "index-3c4d.css").write_text("body { margin: 0 }")
    return folder


@pytest.fixture
async def monitored(tmp_path):
    """A monitor and what it reads: `pool`, `activity`, `metrics`, `catalog`, and `config`, which can be replaced."""
    hub = tmp_path / "hub"
    disk.write_hub(hub, "mlx-community/gemma-2-2b-it-4bit", disk.model())
    fixture = SimpleNamespace(
        pool=FakePool(),
        activity=Activity(),
        metrics=PoolMetrics(CollectorRegistry()),
        catalog=disk.make_catalog(tmp_path / "models", hub),
        config=Config(),
    )
    fixture.monitor = Monitor(
        "instance", fixture.catalog, fixture.pool, fixture.metrics, fixture.activity, lambda: fixture.config
    )
    return fixture
