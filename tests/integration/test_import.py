"""Import of GGUF files and MLX folders through a real daemon."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from gguf import GGMLQuantizationType as Type
from openai import OpenAI

from osaurusd.imports.worker.shared_path import receive_files
from tests import daemons
from tests.conftest import SMOLLM, temporary_home
from tests.daemons import Daemon, wait_until
from tests.models import make_tiny
from tests.osaurusd.imports.worker.networks import CASES, Network


@pytest.fixture(scope="module")
def daemon(module_home: Path) -> Iterator[Daemon]:
    with daemons.running(module_home) as running:
        yield running


@pytest.fixture(scope="module")
def tiny_folder(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in an MLX folder."""
    return make_tiny(tmp_path_factory.mktemp("tiny"), tiny_tokenizer)


@pytest.fixture(autouse=True)
def imported_models(daemon: Daemon) -> Iterator[None]:
    """Removes the imported models after a test."""
    yield
    names = [model["name"] for model in daemon.admin("GET", "/v0/models")[1]]
    assert 200 == daemon.admin("POST", "/v0/models/remove", {"models": names, "force": True})[0] or not names


def list_models_folder(daemon: Daemon) -> list[str]:
    return [path.name for path in (daemon.home / "models").iterdir()]


def test_gguf_import_reports_progress_and_adds_the_model(daemon: Daemon, smollm_gguf: Path) -> None:
    status, events = daemon.admin("POST", "/v0/imports", {"path": str(smollm_gguf)})

    assert 200 == status
    assert {"progress"} == {event["event"] for event in events[:-1]}
    assert {"hash", "convert", "record"} == {event["stage"] for event in events[:-1]}
    assert ("done", SMOLLM, "4-bit", 8192) == (
        events[-1]["event"],
        *(events[-1]["model"][key] for key in ("name", "quantization", "context_length")),
    )
    assert [SMOLLM] == list_models_folder(daemon)
    assert [SMOLLM] == [model["name"] for model in daemon.admin("GET", "/v0/models")[1]]


def test_name_of_a_non_ascii_folder_stays_readable(daemon: Daemon, tiny_tokenizer: Path, tmp_path: Path) -> None:
    make_tiny(tmp_path / "模型-Ünï", tiny_tokenizer)
    _, events = daemon.admin("POST", "/v0/imports", {"path": str(tmp_path / "模型-Ünï")})
    assert ("done", "模型-ünï") == (events[-1]["event"], events[-1]["model"]["name"])

    with OpenAI(base_url=daemon.url, api_key="not-needed", max_retries=0) as client:
        # Decomposed, as macOS programs write it.
        answer = client.completions.create(model="模型-U\u0308ni\u0308", prompt="Hello", max_tokens=1)
        assert "模型-ünï" == answer.model
        assert "模型-ünï" == client.models.retrieve("模型-ünï").id


def test_gguf_import_quantizes_on_request_and_reports_the_error(daemon: Daemon, tmp_path: Path) -> None:
    path = Network(CASES[0], Type.Q5_K).write(tmp_path / "tiny.gguf")
    exact = daemon.admin("POST", "/v0/imports", {"path": str(path), "name": "exact"})[1][-1]
    status, events = daemon.admin("POST", "/v0/imports", {"path": str(path), "quantize": "4", "group_size": 64})

    assert (200, "done", "4-bit") == (status, events[-1]["event"], events[-1]["model"]["quantization"])
    report = events[-1]["quantization"]
    assert 0.01 < report["mean_error"] <= report["worst_error"] < 0.2
    assert exact["quantization"]["worst_error"] < 0.001
    with OpenAI(base_url=daemon.url, api_key="not-needed", max_retries=0) as client:
        assert client.completions.create(model="tiny", prompt="hello", max_tokens=2).usage.completion_tokens <= 2


@pytest.mark.parametrize(("field", "value"), [("quantize", "7"), ("quantize", 4), ("group_size", 48)])
def test_unknown_quantization_is_rejected(daemon: Daemon, field: str, value: object) -> None:
    status, error = daemon.admin("POST", "/v0/imports", {"path": "/x.gguf", field: value})

    assert 400 == status
    assert field in error["error"]["message"]


def test_mlx_folder_is_imported_under_the_requested_name_once(daemon: Daemon, tiny_folder: Path) -> None:
    status, events = daemon.admin("POST", "/v0/imports", {"path": str(tiny_folder), "name": "mine"})
    assert (200, "done", "mine") == (status, events[-1]["event"], events[-1]["model"]["name"])

    status, error = daemon.admin("POST", "/v0/imports", {"path": str(tiny_folder), "name": "mine"})
    assert (409, "name_taken") == (status, error["error"]["code"])


def test_invalid_file_is_rejected_by_name_and_leaves_no_files(daemon: Daemon, tmp_path: Path) -> None:
    invalid = tmp_path / "invalid.gguf"
    invalid.write_bytes(b"GGUF" + bytes(100))
    status, error = daemon.admin("POST", "/v0/imports", {"path": str(invalid)})

    assert (400, "import_failed") == (status, error["error"]["code"])
    assert "invalid.gguf" in error["error"]["message"]
    assert [] == list_models_folder(daemon)


def test_truncated_file_is_rejected_and_leaves_no_files(daemon: Daemon, smollm_gguf: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.gguf"
    with smollm_gguf.open("rb") as source, truncated.open("wb") as target:
        target.write(source.read(20_000_000))
    _, response = daemon.admin("POST", "/v0/imports", {"path": str(truncated)})

    assert "import_failed" in json.dumps(response)
    assert "truncated.gguf" in json.dumps(response)
    assert [] == list_models_folder(daemon)


@pytest.fixture
def endless_gguf(tmp_path: Path) -> Path:
    """A valid file, sparse and so large that hashing it takes minutes."""
    path = Network(CASES[0], Type.Q8_0).write(tmp_path / "endless.gguf")
    os.truncate(path, 1 << 36)
    return path


def test_disconnecting_cancels_the_import(daemon: Daemon, endless_gguf: Path) -> None:
    imports = daemon.count("request", path="/v0/imports")
    with daemon.following("POST", "/v0/imports", {"path": str(endless_gguf)}) as progress:
        next(progress)
        children = psutil.Process(daemon.process.pid).children()
    daemon.wait_for("request", count=imports + 1, path="/v0/imports")

    psutil.wait_procs(children, 60)
    assert [] == [child for child in children if child.is_running()]
    wait_until(lambda: [] == list_models_folder(daemon))


def test_unfinished_imports_of_a_killed_daemon_are_removed_at_the_next_start(home: Path, endless_gguf: Path) -> None:
    with daemons.running(home) as daemon:
        with daemon.following("POST", "/v0/imports", {"path": str(endless_gguf)}) as progress:
            next(progress)
            importers = psutil.Process(daemon.process.pid).children()
            daemon.stop(signal.SIGKILL)
        psutil.wait_procs(importers, 60)
        assert [] == [importer for importer in importers if importer.is_running()]
        assert [name for name in list_models_folder(daemon) if name.startswith(".importing-")]

    with daemons.running(home) as restarted:
        assert [] == list_models_folder(restarted)


SHARE = """
import sys
from pathlib import Path
from osaurusctl.sharing import shared_files

with shared_files(Path(sys.argv[1]), Path(sys.argv[2])) as path:
    print(path, flush=True)
    sys.stdin.read()
"""


def test_socket_of_a_killed_command_line_is_removed_at_the_next_start(home: Path, smollm_gguf: Path) -> None:
    run_dir = home / "run"
    run_dir.mkdir(mode=0o700)
    command = [sys.executable, "-c", SHARE, str(smollm_gguf), str(run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        leftover = Path(process.stdout.readline().strip())
        process.kill()
    other = run_dir / "fd-notes"
    other.touch()
    assert leftover.is_socket()

    with daemons.running(home) as daemon:
        daemon.wait_for("serving")
        assert {other, daemon.socket, run_dir / "admin.sock.lock"} == {*run_dir.iterdir()}


def test_socket_of_the_command_line_is_removed_once_the_files_are_passed(home: Path, tmp_path: Path) -> None:
    run_dir = home / "run"
    run_dir.mkdir(mode=0o700)
    source = tmp_path / "x.gguf"
    source.write_bytes(b"GGUF")
    command = [sys.executable, "-c", SHARE, str(source), str(run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        path = process.stdout.readline().strip()
        assert b"GGUF" == receive_files(source, path).read_bytes()
        assert [] == [*run_dir.iterdir()]
        process.kill()


@pytest.mark.parametrize("stage", ["convert", pytest.param("hash", marks=pytest.mark.long)])
def test_killed_import_is_reported_and_can_be_repeated(
    daemon: Daemon, endless_gguf: Path, tmp_path: Path, stage: str
) -> None:
    command = [sys.executable, "-m", "osaurusctl", "import", str(endless_gguf), "--name", "again", "--json"]
    environment = daemons.environment(daemon.home)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        next(event for line in process.stdout if (event := json.loads(line)).get("stage") == stage)
        (importer,) = (
            child
            for child in psutil.Process(daemon.process.pid).children()
            if "osaurusd.imports.worker" in child.cmdline()
        )
        importer.kill()
        output, _ = process.communicate()
    reason = "endless.gguf: the import process exited unexpectedly (killed by SIGKILL)"
    assert (1, reason) == (process.returncode, json.loads(output.splitlines()[-1])["error"]["message"])
    assert [] == list_models_folder(daemon)
    assert {"admin.sock", "admin.sock.lock"} == {path.name for path in (daemon.home / "run").iterdir()}

    path = Network(CASES[0], Type.Q8_0).write(tmp_path / "whole.gguf")
    assert "done" == daemon.admin("POST", "/v0/imports", {"path": str(path), "name": "again"})[1][-1]["event"]


def test_name_can_be_used_again_after_the_model_is_removed(daemon: Daemon, tmp_path: Path) -> None:
    path = Network(CASES[0], Type.Q8_0).write(tmp_path / "tiny.gguf")
    for _ in range(2):
        # The command line disconnects as soon as the model is imported.
        run = daemons.ctl(daemon.home, "import", str(path), "--name", "again")
        assert 0 == run.returncode, run.stderr
        assert 200 == daemon.admin("POST", "/v0/models/remove", {"models": ["again"]})[0]


DENY = """
import errno, os, sys

def deny(event, arguments):
    path = arguments[0] if arguments else None
    protected = os.environ["HOME"] + "/Downloads"
    if event in ("open", "os.listdir", "os.scandir") and isinstance(path, str) and path.startswith(protected):
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

sys.addaudithook(deny)
"""


@pytest.fixture(scope="module")
def confined_daemon() -> Iterator[Daemon]:
    """A daemon that, like its child processes, may not open files in Downloads, as on macOS."""
    with temporary_home() as home:
        (home / "user" / "Downloads").mkdir(parents=True)
        (home / "python").mkdir()
        (home / "python" / "sitecustomize.py").write_text(DENY)
        python_path = os.pathsep.join(filter(None, [str(home / "python"), os.environ.get("PYTHONPATH")]))
        with daemons.running(home, HOME=str(home / "user"), PYTHONPATH=python_path) as running:
            yield running


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_command_line_imports_what_only_the_user_may_open(
    confined_daemon: Daemon, tiny_tokenizer: Path, kind: str
) -> None:
    downloads = confined_daemon.home / "user" / "Downloads"
    source = downloads / "Some-Model.gguf" if kind == "file" else downloads / "Some-Folder"
    if kind == "file":
        Network(CASES[0], Type.Q8_0).write(source)
    else:
        make_tiny(source, tiny_tokenizer)
    status, refused = confined_daemon.admin("POST", "/v0/imports", {"path": str(source)})
    assert (400, True) == (status, "Operation not permitted" in refused["error"]["message"])
    run = daemons.ctl(confined_daemon.home, "import", str(source), "--name", kind)

    assert 0 == run.returncode, run.stderr
    assert kind in list_models_folder(confined_daemon)
    assert {"admin.sock", "admin.sock.lock"} == {path.name for path in (confined_daemon.home / "run").iterdir()}


@pytest.mark.parametrize(
    ("files", "part"), [("relative", "`files`"), ("/no/such/socket", "did not pass the open files"), (5, "files")]
)
def test_invalid_socket_for_open_files_is_rejected(confined_daemon: Daemon, files: object, part: str) -> None:
    status, answer = confined_daemon.admin("POST", "/v0/imports", {"path": "/x.gguf", "files": files})

    assert 400 == status
    assert part in answer["error"]["message"]


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root to mount a small file system"
)
def test_full_disk_is_reported_and_leaves_no_files(home: Path, smollm_gguf: Path) -> None:
    models = home / "models"
    models.mkdir()
    if os.system(f"mount -t tmpfs -o size=30m tmpfs {models}"):
        pytest.skip("mounting is not permitted")
    try:
        with daemons.running(home) as daemon:
            _, response = daemon.admin("POST", "/v0/imports", {"path": str(smollm_gguf)})

            assert "the disk is full" in response["error"]["message"]
            assert [] == list_models_folder(daemon)
    finally:
        os.system(f"umount {models}")
