"""Quantizing models through a real daemon and the command line."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from tests import daemons
from tests.conftest import SMOLLM
from tests.daemons import Daemon, UnixConnection
from tests.models import make_tiny

HEADERS = {"Host": "osaurusd", "Osaurus-Api": "1", "Content-Type": "application/json"}

# The first line of progress precedes the import of MLX, so even tiny models leave the time to interrupt.
REQUEST = json.dumps({"model": "tiny-bf16", "bits": 4, "group_size": 32, "name": "interrupted"})


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    make_tiny(module_home / "models" / "tiny-bf16", tiny_tokenizer)
    with daemons.running(module_home) as running:
        yield running


def ctl(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return daemons.ctl(daemon.home, *arguments)


def models_folder(daemon: Daemon) -> set[str]:
    return {path.name for path in (daemon.home / "models").iterdir()}


def test_quantized_copy_answers_and_shows_its_origin(daemon: Daemon) -> None:
    run = ctl(daemon, "quantize", "tiny-bf16", "--bits", "4", "--group-size", "32")
    assert 0 == run.returncode, run.stderr
    assert run.stdout.startswith("tiny-4bit created: ")
    assert "bits per weight" in run.stdout
    assert "mean relative error" in run.stdout

    shown = json.loads(ctl(daemon, "show", "tiny-4bit", "--json").stdout)
    assert ("4-bit", "available") == (shown["model"]["quantization"], shown["model"]["state"])
    lineage = shown["lineage"]
    assert ("tiny-bf16", "affine", 4, 32) == tuple(lineage[key] for key in ("base", "mode", "bits", "group_size"))
    text = ctl(daemon, "show", "tiny-4bit").stdout
    assert "tiny-bf16" in text
    assert "affine, 4 bits, group size 32" in text
    assert 0 == ctl(daemon, "verify", "tiny-4bit").returncode
    with OpenAI(base_url=daemon.url, api_key="not-needed", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="tiny-4bit", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
        )
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 4


def test_json_reports_progress_and_sizes(daemon: Daemon) -> None:
    run = ctl(daemon, "quantize", "tiny-bf16", "--bits", "mxfp4", "--name", "small", "--json")
    events = [json.loads(line) for line in run.stdout.splitlines()]
    assert {"load", "quantize", "record"} == {event["stage"] for event in events[:-1]}
    done = events[-1]
    assert ("done", "small", "mxfp4") == (done["event"], done["model"]["name"], done["model"]["quantization"])
    assert done["model"]["bytes"] < done["base_bytes"]
    assert ("mxfp4", 4, 32) == tuple(done["lineage"][key] for key in ("mode", "bits", "group_size"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tiny-bf16", "--bits", "4", "--name", "tiny-bf16"], 1, "a model `tiny-bf16` exists"),
        (["absent", "--bits", "4"], 4, "absent"),
        (["tiny-bf16", "--bits", "7"], 2, "7"),
        (["tiny-bf16", "--bits", "mxfp4", "--group-size", "32"], 2, "--group-size"),
        (["tiny-bf16", "--bits", "5", "--group-size", "128"], 1, "multiple of the group size"),
    ],
)
def test_impossible_requests_are_refused(daemon: Daemon, arguments: list[str], code: int, message: str) -> None:
    before = models_folder(daemon)
    run = ctl(daemon, "quantize", *arguments)
    assert code == run.returncode
    assert message in run.stderr
    assert before == models_folder(daemon)


def test_mode_that_fixes_the_bits_rejects_them_by_field(daemon: Daemon) -> None:
    status, answer = daemon.admin("POST", "/v0/quantizations", {"model": "tiny-bf16", "mode": "mxfp8", "bits": 4})
    assert (400, "bits") == (status, answer["error"]["param"])


@contextlib.contextmanager
def stopped_quantization(daemon: Daemon) -> Iterator[tuple[UnixConnection, HTTPResponse, psutil.Process]]:
    """Start a quantization, and stop its process before it ends; yield the request, its response and the process."""
    while True:
        with contextlib.closing(UnixConnection(daemon.socket)) as connection:
            connection.request("POST", "/v0/quantizations", REQUEST, HEADERS)
            response = connection.getresponse()
            response.readline()
            if (child := suspend_quantization(daemon)) is not None:
                yield connection, response, child
                return
            # A busy machine stopped this test for as long as the quantization took.
            response.read()
        daemon.admin("POST", "/v0/models/remove", {"models": ["interrupted"]})


def suspend_quantization(daemon: Daemon) -> psutil.Process | None:
    """Stop the process of the running quantization, and return it; None if it has ended."""
    for child in psutil.Process(daemon.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "quantize" in " ".join(child.cmdline()):
                child.suspend()
                return child
    return None


def test_disconnecting_cancels_the_quantization(daemon: Daemon) -> None:
    with stopped_quantization(daemon) as (connection, _, child):
        requests = daemon.count("request")
        connection.close()
        daemon.wait_for("request", count=requests + 1)

        psutil.wait_procs([child], 60)
        assert not child.is_running()
    assert "interrupted" not in models_folder(daemon)


def test_killed_child_process_leaves_no_files(daemon: Daemon) -> None:
    with stopped_quantization(daemon) as (_, response, child):
        child.kill()
        last = json.loads(response.read().splitlines()[-1])
    assert ("error", "quantization_failed") == (last["event"], last["error"]["code"])
    assert "killed by SIGKILL" in last["error"]["message"]
    assert not [name for name in models_folder(daemon) if name.startswith(".importing-")]


@pytest.mark.long
def test_killed_daemon_leaves_nothing_after_its_next_start(home: Path, tiny_tokenizer: Path) -> None:
    make_tiny(home / "models" / "tiny-bf16", tiny_tokenizer)
    with daemons.running(home) as daemon:
        connection = UnixConnection(daemon.socket)
        connection.request("POST", "/v0/quantizations", REQUEST, HEADERS)
        connection.getresponse().readline()
        children = psutil.Process(daemon.process.pid).children()
        daemon.stop(signal.SIGKILL)
        connection.close()
        psutil.wait_procs(children, 60)
        assert [] == [child for child in children if child.is_running()]
    with daemons.running(home) as restarted:
        assert {"tiny-bf16"} == models_folder(restarted)


@pytest.mark.long
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root to mount a small file system"
)
def test_full_disk_is_one_clear_line(home: Path, tiny_tokenizer: Path) -> None:
    models = home / "models"
    models.mkdir()
    if os.system(f"mount -t tmpfs -o size=30m tmpfs {models}"):
        pytest.skip("mounting is not permitted")
    try:
        make_tiny(models / "tiny", tiny_tokenizer, vocab_size=49152)
        with daemons.running(home) as daemon:
            # Too little for the weights, and enough for the weights but not for the tokenizer.
            for free, reason in ((1_000_000, "the disk is full: "), (2_100_000, "the disk is full\n")):
                with (models / ".filler").open("wb") as filler:
                    filler.write(bytes(shutil.disk_usage(models).free - free))
                run = ctl(daemon, "quantize", "tiny", "--bits", "8", "--group-size", "32")
                assert 1 == run.returncode
                assert f'error: model "tiny" cannot be quantized: {reason}' in run.stderr
                assert {"tiny", ".filler"} == models_folder(daemon)
    finally:
        os.system(f"umount {models}")


@pytest.mark.long
def test_starter_model_with_8_bits_still_knows_paris(home: Path, smollm_gguf: Path) -> None:
    with daemons.running(home) as daemon:
        daemon.admin("POST", "/v0/imports", {"path": str(smollm_gguf)})
        refused = ctl(daemon, "quantize", SMOLLM, "--bits", "8")
        assert 1 == refused.returncode
        assert "quantized already" in refused.stderr
        run = ctl(daemon, "quantize", SMOLLM, "--bits", "8", "--requantize")
        assert 0 == run.returncode, run.stderr
        with OpenAI(base_url=daemon.url, api_key="not-needed", max_retries=0) as client:
            answer = client.chat.completions.create(
                model=f"{SMOLLM}-8bit",
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                temperature=0,
                max_tokens=20,
            )
        assert "Paris" in (answer.choices[0].message.content or "")
