"""Shared fixtures: temporary home directories, the starter model, and a daemon that serves it."""

import contextlib
import fcntl
import gc
import importlib
import os
import shutil
import signal
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

# First, as in the daemon: with rich, structlog renders tracebacks so slowly that tests of failures time out.
import osaurusd.lean_imports  # noqa: F401

# Tests run in parallel: with several threads each, OpenBLAS would mostly wait for a core, and keep others busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# isort: split
import pytest

from tests import daemons, embedding_model, starter_model
from tests.daemons import Daemon

if TYPE_CHECKING:
    from openai import OpenAI

ROOT = Path(__file__).parents[1]
SMOLLM = "smollm2-135m-instruct"
TINY = "tiny"
MAX_TEMPORARY_LENGTH = 20
MIN_BUNDLE_BYTES = 100_000


def pytest_configure() -> None:
    """Restore the default signal handling if the tests run in the background of a script.

    Shells ignore SIGINT in background jobs, nohup ignores SIGHUP, and processes that tests start would inherit this.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Prepare the process for all tests."""
    use_short_temporary_directory()
    ignore_certificate_authorities()
    # Collecting creates millions of objects, nearly all of which stay.
    gc.disable()
    if hasattr(session.config, "workerinput"):
        # Each process of a whole run collects tests of models, which import transformers; all of it takes seconds.
        importlib.import_module("osaurusd.worker.lean_imports")
    share_compilation(session)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def share_compilation(session: pytest.Session) -> None:
    """Import a share of the test modules first, so that the processes of a test run do not all compile each of them."""
    if not hasattr(session.config, "workerinput") or sys.dont_write_bytecode:
        return
    number, count = (session.config.workerinput[name] for name in ("workerid", "workercount"))
    paths = [session.config.invocation_params.dir / name.partition("::")[0] for name in session.config.args]
    modules = sorted({file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py"))})
    for file in modules[int(number.removeprefix("gw")) :: count]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # reported when it is collected
            importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


def use_short_temporary_directory() -> None:
    """On macOS, the default one leaves no room for the path of a Unix socket."""
    if len(tempfile.gettempdir()) > MAX_TEMPORARY_LENGTH:
        # Resolved, because /tmp is a link on macOS, and tests compare paths with those that processes report.
        tempfile.tempdir = os.environ["TMPDIR"] = os.path.realpath("/tmp")


def ignore_certificate_authorities() -> None:
    """Read none of the machine's certificate authorities: 30 ms for each client, of which tests create hundreds.

    Servers of tests have certificates of their own, in files that are much smaller.
    """
    load = ssl.SSLContext.load_verify_locations

    def load_small_file(context: ssl.SSLContext, cafile: str | None = None, *args: Any, **kwargs: Any) -> None:
        if cafile is None or Path(cafile).stat().st_size < MIN_BUNDLE_BYTES:
            load(context, cafile, *args, **kwargs)

    def load_configured(context: ssl.SSLContext) -> None:
        if file := os.environ.get("SSL_CERT_FILE"):
            load_small_file(context, file)

    replacements = pytest.MonkeyPatch()
    replacements.setattr(ssl.SSLContext, "load_verify_locations", load_small_file)
    replacements.setattr(ssl.SSLContext, "set_default_verify_paths", load_configured)


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


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """Return a folder that all processes of a test run share. The first one that needs it builds it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, unfinished = base / "shared" / name, base / "unfinished" / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            build(unfinished)
            folder.parent.mkdir(exist_ok=True)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def smollm_folder(smollm_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as an MLX folder."""
    from osaurusd.imports.worker.importer import import_model  # noqa: PLC0415  imports MLX, which most tests do not need

    return build_once(tmp_path_factory, SMOLLM, lambda folder: import_model(smollm_gguf, folder, lambda *_: None))


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2, as its authors publish it."""
    return embedding_model.fetch()


@pytest.fixture(scope="session")
def tiny_tokenizer(smollm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of SmolLM2, reduced to its most frequent tokens, for `make_tiny`."""
    from tests.models import make_tokenizer  # noqa: PLC0415  imports MLX, which most tests do not need

    return build_once(tmp_path_factory, "tokenizer", lambda folder: make_tokenizer(folder, smollm_folder))


@pytest.fixture(scope="session")
def tiny_daemon(tiny_tokenizer: Path) -> Iterator[Daemon]:
    """A daemon with a tiny random model, shared by all tests. Its output is arbitrary, but it takes little time."""
    from tests.models import NO_END_TOKEN, make_tiny  # noqa: PLC0415  imports MLX, which most tests do not need

    with temporary_home() as home:
        folder = home / "models" / TINY
        options = {"max_position_embeddings": 8192, "eos_token_id": NO_END_TOKEN, "tie_word_embeddings": False}
        make_tiny(folder, tiny_tokenizer, **options)
        with daemons.running(home) as daemon:
            yield daemon


@pytest.fixture(scope="session")
def anthropic() -> ModuleType:
    """Anthropic's library. To import it takes as long as a quarter of all tests' modules, and few processes need it."""
    return importlib.import_module("anthropic")


@pytest.fixture(scope="session")
def client(tiny_daemon: Daemon) -> "Iterator[OpenAI]":
    """OpenAI's client, connected to that daemon. It takes longer to create than most requests."""
    from openai import OpenAI  # noqa: PLC0415  takes a second, which the process that only distributes tests can save

    with OpenAI(base_url=tiny_daemon.url, api_key="not-needed", max_retries=0) as openai_client:
        yield openai_client
