"""Shared fixtures: temporary home directories, the starter model, and a daemon that serves it."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

# First, as in the daemon: with rich, structlog renders tracebacks so slowly that tests of failures time out.
import osaurusd.lean_imports  # noqa: F401

# isort: split
import pytest
from openai import OpenAI

from tests import daemons, embedding_model, starter_model
from tests.daemons import Daemon

SMOLLM = "smollm2-135m-instruct"
MAX_TEMPORARY_LENGTH = 20


def pytest_configure() -> None:
    """Restore the default signal handling if the tests run in the background of a script.

    Shells ignore SIGINT in background jobs, nohup ignores SIGHUP, and processes that tests start would inherit this.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_sessionstart() -> None:
    """Use a short temporary directory: on macOS, the default one leaves no room for the path of a Unix socket."""
    if len(tempfile.gettempdir()) > MAX_TEMPORARY_LENGTH:
        # Resolved, because /tmp is a link on macOS, and tests compare paths with those that processes report.
        tempfile.tempdir = os.environ["TMPDIR"] = os.path.realpath("/tmp")


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """Create an empty home directory whose path is short enough for a Unix socket; remove it at the end."""
    path = Path(tempfile.mkdtemp(prefix="osaurus-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty home directory."""
    with temporary_home() as path:
        yield path


@pytest.fixture(scope="module")
def module_home() -> Iterator[Path]:
    """An empty home directory for a daemon that all tests of a module share."""
    with temporary_home() as path:
        yield path


@pytest.fixture(scope="session")
def smollm_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file."""
    return starter_model.fetch()


@pytest.fixture(scope="session")
def smollm_folder(smollm_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as an MLX folder."""
    from osaurusd.imports.worker.importer import import_model  # noqa: PLC0415  imports MLX, which most tests do not need

    folder = tmp_path_factory.mktemp("smollm") / SMOLLM
    folder.mkdir()
    import_model(smollm_gguf, folder, lambda *_: None)
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2, as its authors publish it."""
    return embedding_model.fetch()


@pytest.fixture(scope="session")
def smollm_daemon(smollm_folder: Path) -> Iterator[Daemon]:
    """A daemon with SmolLM2, shared by all tests."""
    with temporary_home() as home:
        (home / "models").mkdir()
        shutil.copytree(smollm_folder, home / "models" / SMOLLM)
        with daemons.running(home) as daemon:
            yield daemon


@pytest.fixture
def client(smollm_daemon: Daemon) -> Iterator[OpenAI]:
    """OpenAI's client, connected to that daemon."""
    with OpenAI(base_url=smollm_daemon.url, api_key="not-needed", max_retries=0) as openai_client:
        yield openai_client
