"""Bringing models in through the real daemon."""

import json
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from tests import daemons
from tests.conftest import SMOLLM
from tests.daemons import Daemon, UnixConnection

HEADERS = {"Host": "osaurusd", "Osaurus-Api": "1", "Content-Type": "application/json"}


@pytest.fixture
def daemon(home: Path):
    with daemons.running(home) as running:
        yield running


def leftovers(daemon: Daemon) -> list[str]:
    return [path.name for path in (daemon.home / "models").iterdir()]


def test_a_gguf_file_becomes_a_model_with_progress_on_the_way(daemon: Daemon, smollm_gguf: Path) -> None:
    status, events = daemon.admin("POST", "/v0/imports", {"path": str(smollm_gguf)})

    assert 200 == status
    assert {"progress"} == {event["event"] for event in events[:-1]}
    assert {"hash", "convert", "record"} == {event["stage"] for event in events[:-1]}
    assert ("done", SMOLLM, "4-bit", 8192) == (
        events[-1]["event"],
        *(events[-1]["model"][key] for key in ("name", "quantization", "context_length")),
    )
    assert [SMOLLM] == leftovers(daemon)
    assert [SMOLLM] == [model["name"] for model in daemon.admin("GET", "/v0/models")[1]]


def test_an_mlx_folder_becomes_a_model_under_the_name_it_is_given(daemon: Daemon, smollm_folder: Path) -> None:
    status, events = daemon.admin("POST", "/v0/imports", {"path": str(smollm_folder), "name": "mine"})

    assert (200, "done", "mine") == (status, events[-1]["event"], events[-1]["model"]["name"])


def test_a_name_that_is_taken_is_refused(daemon: Daemon, smollm_folder: Path) -> None:
    daemon.admin("POST", "/v0/imports", {"path": str(smollm_folder), "name": "mine"})
    status, error = daemon.admin("POST", "/v0/imports", {"path": str(smollm_folder), "name": "mine"})

    assert (409, "name_taken") == (status, error["error"]["code"])


def test_a_file_that_cannot_be_read_is_refused_by_name_and_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    status, error = daemon.admin("POST", "/v0/imports", {"path": str(broken)})

    assert (400, "import_failed") == (status, error["error"]["code"])
    assert "broken.gguf" in error["error"]["message"]
    assert [] == leftovers(daemon)


def test_a_truncated_file_is_refused_and_leaves_nothing(daemon: Daemon, smollm_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with smollm_gguf.open("rb") as source, cut.open("wb") as target:
        target.write(source.read(20_000_000))
    answer = daemon.admin("POST", "/v0/imports", {"path": str(cut)})

    assert "import_failed" in json.dumps(answer)
    assert "cut.gguf" in json.dumps(answer)
    assert [] == leftovers(daemon)


def test_a_client_that_goes_away_gives_the_import_up(daemon: Daemon, smollm_gguf: Path) -> None:
    connection = UnixConnection(daemon.socket)
    connection.request("POST", "/v0/imports", json.dumps({"path": str(smollm_gguf)}), HEADERS)
    connection.getresponse().readline()
    children = psutil.Process(daemon.process.pid).children()
    requests = sum(line["event"] == "request" for line in daemon.log)
    connection.close()
    daemon.wait_for("request", count=requests + 1)

    psutil.wait_procs(children, 10)
    assert [] == [child for child in children if child.is_running()]
    assert [] == leftovers(daemon)


def test_what_a_killed_daemon_left_unfinished_is_swept_at_the_next_start(home: Path, smollm_gguf: Path) -> None:
    with daemons.running(home) as daemon:
        connection = UnixConnection(daemon.socket)
        connection.request("POST", "/v0/imports", json.dumps({"path": str(smollm_gguf)}), HEADERS)
        connection.getresponse().readline()
        importers = psutil.Process(daemon.process.pid).children()
        daemon.stop(signal.SIGKILL)
        connection.close()
        psutil.wait_procs(importers, 10)
        assert [] == [importer for importer in importers if importer.is_running()]
        assert [name for name in leftovers(daemon) if name.startswith(".importing-")]

    with daemons.running(home) as successor:
        assert [] == leftovers(successor)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs a small file system of its own")
def test_a_full_disk_is_said_and_leaves_nothing(home: Path, smollm_gguf: Path) -> None:
    models = home / "models"
    models.mkdir()
    if os.system(f"mount -t tmpfs -o size=30m tmpfs {models}"):
        pytest.skip("mounting is not allowed here")
    try:
        with daemons.running(home) as daemon:
            answer = daemon.admin("POST", "/v0/imports", {"path": str(smollm_gguf)})

            assert "No space left" in json.dumps(answer)
            assert [] == leftovers(daemon)
    finally:
        os.system(f"umount {models}")
