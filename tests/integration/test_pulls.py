"""Pulls through the real daemon and the real CLI, from a stand-in for the hub."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import NotFoundError, OpenAI

from osaurusd.models.names import PUBLISHED
from tests import daemons
from tests.daemons import Daemon
from tests.fakes import hub as stand_in
from tests.fakes.hub import Hub
from tests.integration.test_architectures import DEEPSEEK_TEMPLATE, GEMMA_TEMPLATE, MODELS
from tests.models import make_tiny
from tests.osaurusd.models import disk

SMALL = "org/small"
LARGE = "org/large"
NAME = "large"
PER_KILL = 32 * 1024 * 1024
CODE = b"raise SystemExit('never run')"


def shard(path: Path, size: int, seed: int) -> Path:
    """A safetensors file with `size` random bytes of weights."""
    header = {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    generator = random.Random(seed)
    with path.open("wb") as file:
        file.write(disk.with_header(json.dumps(header).encode()))
        for begin in range(0, size, 1 << 24):
            file.write(generator.randbytes(min(1 << 24, size - begin)))
    return path


def sharded(folder: Path, count: int, size: int) -> dict[str, Any]:
    """The files of a model of several shards."""
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    weights = {name: shard(folder / name, size, seed) for seed, name in enumerate(names)}
    rest = {name: content for name, content in disk.model().items() if name != "model.safetensors"}
    return {**rest, "model.safetensors.index.json": disk.index(*names), **weights}


@pytest.fixture(scope="module")
def _hub(tmp_path_factory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    stand_in.publish(root, SMALL, disk.model() | {"model.py": CODE})
    stand_in.publish(root, LARGE, sharded(tmp_path_factory.mktemp("shards"), 2, 40_000_000))
    with stand_in.running(root) as hub:
        yield hub


@pytest.fixture
def hub(_hub: Hub) -> Hub:
    _hub.reset()
    return _hub


@pytest.fixture
def daemon(home: Path, hub: Hub) -> Iterator[Daemon]:
    with daemons.running(home, **surroundings(hub)) as running:
        yield running


def surroundings(hub: Hub) -> dict[str, str]:
    """What the daemon needs to know of the hub, and of proxies: nothing."""
    return {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "no_proxy": "*", "NO_PROXY": "*"}


def ctl(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "osaurusctl", *arguments]
    return subprocess.run(
        command, env=daemons.environment(home, **env), capture_output=True, text=True, timeout=120, check=False
    )


def fetcher(daemon: Daemon) -> psutil.Process:
    """The process that downloads."""
    children = psutil.Process(daemon.process.pid).children()
    return next(child for child in children if "osaurusd.downloads.worker" in child.cmdline())


def pulls(daemon: Daemon) -> list[tuple[str, str]]:
    return [(pull["name"], pull["state"]) for pull in daemon.admin("GET", "/v0/pulls")[1]]


def events(daemon: Daemon, pull: str) -> list[dict[str, Any]]:
    """What watching a pull tells until it has ended."""
    status, told = daemon.admin("POST", "/v0/pulls/watch", {"pulls": [pull]})
    assert 200 == status, told
    return list(told)


def received(daemon: Daemon, count: int) -> None:
    """Wait until the only pull has so many bytes."""
    (pull,) = daemon.admin("GET", "/v0/pulls")[1]
    with daemon.following("POST", "/v0/pulls/watch", {"pulls": [pull["id"]]}) as told:
        next(event for event in told if event["pull"]["done"] >= count)


def listed(daemon: Daemon) -> list[str]:
    with OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        return [model.id for model in client.models.list()]


def asked(daemon: Daemon, model: str = LARGE, **more: str) -> str:
    status, pull = daemon.admin("POST", "/v0/pulls", {"model": model, **more})
    assert 202 == status, pull
    return str(pull["id"])


def test_a_pulled_model_is_served_under_its_name_once_it_is_whole(daemon: Daemon, hub: Hub) -> None:
    hub.fault("stall", "00002", after=1_000_000)
    pull = asked(daemon)
    hub.wait_served(45_000_000)

    assert [] == listed(daemon)
    assert "downloading" in (shown := ctl(daemon.home, "ls").stdout), shown
    (model,) = json.loads(ctl(daemon.home, "ls", "--json").stdout)
    assert ("partial", NAME) == (model["state"], model["name"])
    assert 0.4 < model["share"] < 1
    hub.release()
    *told, last = events(daemon, pull)
    assert {"progress"} == {event["event"] for event in told}
    assert ("done", NAME) == (last["event"], last["model"]["name"])
    assert [NAME] == listed(daemon)
    assert "80.0 MB" in ctl(daemon.home, "pulls").stdout


def test_the_daemon_and_the_download_are_killed_again_and_again(home: Path, hub: Hub) -> None:
    hub.set(rate=20_000_000)
    chance = random.Random(6)
    points = sorted(chance.randrange(2_000_000, 70_000_000) for _ in range(5))
    served_before = 0
    for number, point in enumerate(points):
        with daemons.running(home, **surroundings(hub)) as daemon:
            pull = asked(daemon)
            hub.wait_served(served_before + point - (points[number - 1] if number else 0))
            victim = fetcher(daemon)
            if number % 2:
                victim.kill()
                daemon.wait_for("a download died and is started again")
            daemon.process.kill()
            daemon.process.wait()
            psutil.wait_procs([victim], 30)
        served_before = hub.served
    hub.set(rate=None)
    with daemons.running(home, **surroundings(hub)) as daemon:
        # It goes on by itself: nobody asks again.
        assert "done" == events(daemon, pull)[-1]["event"]
        assert "intact" in ctl(home, "verify", NAME).stdout
    assert hub.served - 80_000_000 < 7 * PER_KILL / 4, "far less than is allowed"


def test_two_pulls_of_one_model_are_one_and_the_third_model_waits(daemon: Daemon, hub: Hub) -> None:
    for name in ("one", "two", "three"):
        hub.publish(f"org/{name}", disk.model(name=name) | {"model.safetensors": disk.tensors(1_000_000)})
    hub.fault("stall", "model.safetensors", after=1000, times=2)
    first = asked(daemon, "org/one")
    assert first == asked(daemon, "ORG/One")
    second, third = asked(daemon, "org/two"), asked(daemon, "org/three")
    # Both stall now.
    hub.wait_served(2000)

    assert [("one", "running"), ("two", "running"), ("three", "queued")] == pulls(daemon)
    assert 200 == daemon.admin("POST", "/v0/pulls/cancel", {"pull": "org/two"})[0]
    assert "done" == events(daemon, third)[-1]["event"]
    assert ("two", "cancelled") in pulls(daemon)
    assert ["ended"] == [event["event"] for event in events(daemon, second)]
    assert 404 == daemon.admin("POST", "/v0/pulls/cancel", {"pull": second})[0]
    hub.release()
    assert "done" == events(daemon, first)[-1]["event"]


def test_a_closed_terminal_does_not_end_a_pull_and_ctrl_c_does(daemon: Daemon, hub: Hub) -> None:
    hub.fault("stall", "00002", after=1000, times=2)
    command = [sys.executable, "-m", "osaurusctl", "pull", LARGE]
    for number in (signal.SIGHUP, signal.SIGINT):
        watching = subprocess.Popen(command, env=daemons.environment(daemon.home), stderr=subprocess.PIPE, text=True)
        assert watching.stderr is not None
        while "downloading" not in watching.stderr.readline():
            pass
        if number == signal.SIGINT:
            received(daemon, 40_000_000)
        watching.send_signal(number)
        said = watching.stderr.read()
        watching.stderr.close()
        if number == signal.SIGHUP:
            assert -signal.SIGHUP == watching.wait(30)
            assert [(NAME, "running")] == pulls(daemon)
    assert 130 == watching.wait(30)
    assert "goes on where this one was" in said
    assert [(NAME, "cancelled")] == pulls(daemon)
    assert "its pull was cancelled" in ctl(daemon.home, "ls").stdout

    hub.release()
    before = hub.served
    result = ctl(daemon.home, "pull", LARGE)
    assert (0, f"{NAME} is downloaded (80.0 MB, {LARGE})\n") == (result.returncode, result.stdout)
    assert hub.served - before < 45_000_000


def test_what_was_cancelled_can_be_pruned(daemon: Daemon, hub: Hub) -> None:
    hub.fault("stall", "00002", after=1000)
    result = ctl(daemon.home, "pull", LARGE, "--detach")
    assert 0 == result.returncode
    hub.wait_served(30_000_000)
    assert [] == json.loads(ctl(daemon.home, "prune", "--yes", "--json").stdout)["leftovers"]
    assert 0 == ctl(daemon.home, "pulls", "--cancel", NAME).returncode

    (leftover,) = json.loads(ctl(daemon.home, "prune", "--yes", "--json").stdout)["leftovers"]
    assert "a partial download" == leftover["what"]
    assert 20_000_000 < leftover["bytes"] < 81_000_000
    assert not Path(leftover["path"]).exists()
    assert [] == json.loads(ctl(daemon.home, "ls", "--json").stdout)
    assert [] == pulls(daemon)


def test_the_clis_token_is_for_this_pull_and_is_written_nowhere(daemon: Daemon, hub: Hub) -> None:
    hub.publish("org/gated", disk.model(), token="hf_planted")
    refused = ctl(daemon.home, "pull", "org/gated")
    assert 1 == refused.returncode
    assert "HF_TOKEN" in refused.stderr

    assert 0 == ctl(daemon.home, "pull", "org/gated", HF_TOKEN="hf_planted").returncode
    assert 1 == ctl(daemon.home, "pull", "org/gated").returncode
    assert "hf_planted" not in json.dumps(daemon.log)
    for path in daemon.home.rglob("*"):
        if path.is_file():
            assert b"hf_planted" not in path.read_bytes(), path


def test_a_known_model_that_is_missing_names_the_command_and_the_command_gets_it(
    daemon: Daemon, hub: Hub, smollm_folder: Path, tmp_path: Path
) -> None:
    publish_tiny(hub, "mlx-community/OpenELM-3B-Instruct-4bit", smollm_folder, tmp_path)
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    with OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        with pytest.raises(NotFoundError, match="`osaurusctl pull openelm-3b-instruct`"):
            client.chat.completions.create(model="openelm-3b-instruct", **chat)
        assert 0 == ctl(daemon.home, "pull", "openelm-3b-instruct").returncode
        assert "openelm-3b-instruct" == client.chat.completions.create(model="openelm-3b-instruct", **chat).model
    loaded = subprocess.run(
        [sys.executable, "-c", "import mlx_lm; mlx_lm.load('mlx-community/OpenELM-3B-Instruct-4bit')"],
        env=daemons.environment(daemon.home, HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == loaded.returncode, loaded.stderr


def test_search_shows_what_the_hub_has_and_what_is_here(daemon: Daemon, hub: Hub) -> None:
    counts = {"parameters": {"U32": 10**12, "BF16": 1000}, "total": 8 * 10**12}
    hub.publish("mlx-community/Huge-Model-4bit", disk.model(), downloads=7, safetensors=counts)
    assert 0 == ctl(daemon.home, "pull", SMALL).returncode

    huge, *more = json.loads(ctl(daemon.home, "search", "huge", "--json").stdout)
    assert [] == more
    assert ("huge-model", 4 * 10**12 + 2000, False) == (huge["name"], huge["bytes"], huge["fits"])
    found = json.loads(ctl(daemon.home, "search", "--all", "small", "--json").stdout)
    assert [(SMALL, "available")] == [(model["repo"], model["state"]) for model in found]


def publish_tiny(hub: Hub, repo: str, tokenizer: Path, scratch: Path) -> None:
    """Put a repo of the guide's on the hub: its real architecture, tiny random weights, and code."""
    model = dict(MODELS[repo])
    inside = model.get("template") in (GEMMA_TEMPLATE, DEEPSEEK_TEMPLATE)
    template = model.pop("template", "chatml")
    folder = make_tiny(scratch / repo.replace("/", "--"), tokenizer, template=None if inside else template, **model)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    if inside:
        settings = json.loads(files["tokenizer_config.json"]) | {"chat_template": template}
        files["tokenizer_config.json"] = json.dumps(settings).encode()
    hub.publish(repo, files | {"modeling_own.py": CODE, "pytorch_model.bin": b"\x80\x04"})


@pytest.mark.long
def test_all_repos_of_the_guide_are_pulled_and_answer_under_their_names(
    daemon: Daemon, hub: Hub, smollm_folder: Path, tmp_path: Path
) -> None:
    for repo in PUBLISHED:
        publish_tiny(hub, repo, smollm_folder, tmp_path)

    assert 0 == ctl(daemon.home, "pull", *PUBLISHED.values()).returncode
    assert sorted(PUBLISHED.values()) == sorted(listed(daemon))
    with OpenAI(base_url=daemon.url, api_key="x", max_retries=0) as client:
        for name in PUBLISHED.values():
            question = [{"role": "user", "content": "What is the capital of France?"}]
            answer = client.chat.completions.create(model=name, messages=question, max_tokens=4)
            assert answer.usage.completion_tokens
            daemon.admin("POST", "/v0/unload", {})
    assert [] == list(daemon.home.rglob("*.py"))


GIGABYTE = 1_000_000_000


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory) -> Iterator[Path]:
    """The root of a hub with a model of 1 GB in four shards; in memory where there is room, as downloads of it are."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="osaurus-", dir=place))
    (folder / "shards").mkdir()
    stand_in.publish(folder / "root", LARGE, sharded(folder / "shards", 4, GIGABYTE // 4))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.long
def test_a_gigabyte_killed_five_times_arrives_whole(home: Path, gigabyte: Path) -> None:
    chance = random.Random(os.urandom(8))
    with stand_in.running(gigabyte / "root") as hub:
        hub.set(rate=40_000_000)
        wasted = []
        for _ in range(5):
            with daemons.running(home, HF_HUB_CACHE=str(gigabyte / "hub"), **surroundings(hub)) as daemon:
                pull = asked(daemon)
                hub.wait_served(hub.served + chance.randrange(20_000_000, 150_000_000))
                victim = fetcher(daemon)
                for process in chance.sample([victim, psutil.Process(daemon.process.pid)], 2):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                daemon.process.wait()
                psutil.wait_procs([victim], 30)
            wasted.append(hub.served)
        hub.set(rate=None)
        with daemons.running(home, HF_HUB_CACHE=str(gigabyte / "hub"), **surroundings(hub)) as daemon:
            assert "done" == events(daemon, pull)[-1]["event"]
            assert "intact" in ctl(home, "verify", NAME, HF_HUB_CACHE=str(gigabyte / "hub")).stdout
        print(f"served {hub.served} bytes of {GIGABYTE} over 5 kills, at {wasted}")
        assert hub.served - GIGABYTE < 5 * PER_KILL
    shutil.rmtree(gigabyte / "hub")


@pytest.mark.long
def test_a_gigabyte_comes_as_fast_as_by_the_hubs_client_and_nobody_notices(home: Path, gigabyte: Path) -> None:
    code = "import sys; from huggingface_hub import snapshot_download as s; s(sys.argv[1], cache_dir=sys.argv[2])"
    with stand_in.running(gigabyte / "root") as hub:
        env = daemons.environment(home, **surroundings(hub))
        theirs, ours = [], []
        with daemons.running(home, HF_HUB_CACHE=str(gigabyte / "ours"), **surroundings(hub)) as daemon:
            # Digests are computed once, on the first request.
            daemon.admin("POST", "/v0/pulls/watch", {"pulls": [asked(daemon)]})
            resident = psutil.Process(daemon.process.pid).memory_info().rss
            quiet = latency(daemon, seconds=2)
            for _ in range(3):
                shutil.rmtree(gigabyte / "ours")
                begun = time.monotonic()
                pull = asked(daemon)
                with noted(daemon) as slowest:
                    assert "done" == events(daemon, pull)[-1]["event"]
                ours.append(time.monotonic() - begun)
                begun = time.monotonic()
                subprocess.run([sys.executable, "-c", code, LARGE, gigabyte / "theirs"], env=env, check=True)
                theirs.append(time.monotonic() - begun)
                shutil.rmtree(gigabyte / "theirs")
            growth = psutil.Process(daemon.process.pid).memory_info().rss - resident
    shutil.rmtree(gigabyte / "ours")
    print(
        f"ours {ours} s, theirs {theirs} s, RSS +{growth} bytes, latency {quiet:.4f} s quiet, {slowest[0]:.4f} s busy"
    )
    assert min(ours) <= min(theirs) * 1.05
    assert growth < 10_000_000
    assert slowest[0] < max(0.1, 20 * quiet)


def latency(daemon: Daemon, seconds: float) -> float:
    """The median time of a request, in seconds."""
    times = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.monotonic()
        daemon.admin("GET", "/v0/workers")
        times.append(time.monotonic() - begun)
    return sorted(times)[len(times) // 2]


@contextlib.contextmanager
def noted(daemon: Daemon) -> Iterator[list[float]]:
    """The median time of requests while the block runs."""
    found: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        times = []
        while not ended.is_set():
            times.append(latency(daemon, 0.2))
        found.append(sorted(times)[len(times) // 2])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
