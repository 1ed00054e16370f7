"""A pull survives what can go wrong between the hub and the disk, and nothing wrong ever reaches the cache."""

import asyncio
import resource
import signal
import subprocess

import pytest
from huggingface_hub.utils import WeakFileLock

from osaurusd.rpc import messages
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullStage
from tests.fakes import hub as stand_in
from tests.osaurusd.models import disk

from .conftest import FILES, LARGE, LARGE_BYTES, REPO, SHARDS, UNWANTED

SLACK = 32 * 1024 * 1024
"""So much may be fetched twice for a kill."""


async def test_what_is_needed_is_laid_down_as_the_hubs_client_does_and_nothing_else(hub, pull, cache, client):
    last = await pull()

    assert messages.Pulled(commit=last.commit, bytes=sum(map(len, FILES.values()))) == last
    assert FILES == cache.snapshot()
    assert [] == cache.staged()
    assert [] == [request for name in UNWANTED for request in hub.requests(f"/{name}") if "resolve" in request["path"]]
    found = client(
        "c = scan_cache_dir(sys.argv[1]); (r,) = c.repos; (v,) = r.revisions;"
        "print(json.dumps([r.repo_id, r.size_on_disk, v.commit_hash, sorted(v.refs), [str(w) for w in c.warnings]]))",
        cache.path,
    )
    assert [REPO, last.bytes, last.commit, ["main"], []] == found


@pytest.mark.parametrize("unwanted", [{}, UNWANTED], ids=["plain repo", "repo with code"])
async def test_the_hubs_client_finds_it_complete_without_the_network(hub, pull, cache, client, unwanted):
    hub.publish("org/other", FILES | unwanted)
    await pull("org/other")

    found = client(
        "from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS as patterns\n"
        "print(json.dumps(snapshot_download('org/other', cache_dir=sys.argv[1], allow_patterns=patterns)))",
        cache.path,
        HF_HUB_OFFLINE="1",
    )
    assert str(cache.repo("org/other") / "snapshots") == found.rpartition("/")[0]


async def test_a_second_pull_receives_nothing(hub, pull):
    first = await pull()
    hub.reset()

    assert first == await pull()
    assert 0 == hub.served


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "cut", "after": 100_000},
        {"kind": "cut", "after": 0, "times": 3},
        {"kind": "reset", "after": 100_000},
        {"kind": "stall", "after": 100_000},
        {"kind": "status", "status": 500, "where": "hub"},
        {"kind": "status", "status": 503, "where": "cdn"},
        {"kind": "status", "status": 429, "where": "cdn", "headers": {"Retry-After": "1"}},
        {"kind": "status", "status": 403, "where": "cdn"},
        {"kind": "flip", "after": 200_000},
        {"kind": "length", "by": 7},
        {"kind": "length", "by": -7},
        {"kind": "etag"},
        {"kind": "no_range"},
        {"kind": "status", "status": 502, "match": "config.json", "where": "hub"},
        {"kind": "cut", "after": 3, "match": "tokenizer.json"},
        {"kind": "flip", "match": "tokenizer.json"},
        {"kind": "status", "status": 500, "match": "tree", "where": "api"},
    ],
    ids=lambda fault: " ".join(str(fault[key]) for key in ("kind", "status", "where", "match") if key in fault),
)
async def test_a_fault_is_survived(hub, pull, cache, fault):
    hub.fault(**({"match": SHARDS[0]} | fault))

    last = await pull(stall=0.5)

    assert isinstance(last, messages.Pulled), last
    assert FILES == cache.snapshot()
    assert [] == hub.pending


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"kind": "flip"}, "neither time did it match its checksum"),
        ({"kind": "length"}, "bytes of it, and the hub lists"),
        ({"kind": "status", "status": 404, "where": "hub"}, "404"),
        ({"kind": "status", "status": 503}, "given up after"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else None,
)
async def test_what_does_not_pass_is_a_failure_that_names_the_file(hub, pull, cache, fault, named):
    hub.fault(match=SHARDS[1], times=-1, **fault)

    last = await pull(patience=0.1)

    assert ErrorCode.PULL_FAILED == last.code
    assert SHARDS[1] in last.message
    assert named in last.message
    assert [] == cache.blobs()


async def test_a_hub_that_cannot_be_reached_is_waited_for(hub, pulling, env):
    env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    async with pulling(patience=60) as (child, reader, _):
        while not (frame := await reader.read()).note:
            assert PullStage.RESOLVING is frame.stage
        assert "cannot be reached" in frame.note
        assert child.returncode is None


async def test_signed_addresses_that_expire_are_asked_for_anew(hub, pull, cache):
    hub.set(address_seconds=0.2, rate=600_000)
    hub.fault("cut", SHARDS[0], after=250_000, where="cdn")

    assert isinstance(await pull(), messages.Pulled)
    assert FILES == cache.snapshot()
    assert any(request["status"] == 403 for request in hub.requests(SHARDS[0]))


async def test_the_token_goes_to_the_hub_and_to_no_other_host(hub, pull, monkeypatch, cache):
    hub.publish("org/gated", FILES, token="hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    assert isinstance(await pull("org/gated"), messages.Pulled)
    sent = {(request["where"], request["authorization"]) for request in hub.requests("org/gated")}
    assert {("hub", "Bearer hf_secret"), ("cdn", None)} == sent
    assert [] == [path for path in cache.path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


@pytest.mark.parametrize("token", [None, "hf_wrong"])
async def test_a_gated_repo_says_what_to_do(hub, pull, monkeypatch, token):
    hub.publish("org/gated", FILES, token="hf_secret")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    last = await pull("org/gated")

    assert (ErrorCode.FORBIDDEN, True) == (last.code, "agreed to its terms" in last.message)


async def test_a_renamed_repo_is_found_and_keeps_the_name_it_was_asked_by(hub, pull, cache):
    hub.publish("org/old-name", {}, renamed_to=REPO)

    assert isinstance(await pull("org/old-name"), messages.Pulled)
    assert FILES == cache.snapshot("org/old-name")


@pytest.mark.parametrize(
    ("repo", "revision", "code"),
    [("org/none", "main", ErrorCode.MODEL_NOT_FOUND), (REPO, "v9", ErrorCode.MODEL_NOT_FOUND)],
)
async def test_what_the_hub_does_not_have_is_not_found(hub, pull, repo, revision, code):
    assert code == (await pull(repo, revision=revision)).code


async def test_a_revision_is_pulled_under_its_own_ref(hub, pull, cache):
    old = {**FILES, "config.json": disk.config(old=True)}
    commit = hub.publish("org/versions", old, revision="v1")
    hub.publish("org/versions", FILES)

    assert commit == (await pull("org/versions", revision="v1")).commit
    assert ["v1"] == [path.name for path in (cache.repo("org/versions") / "refs").iterdir()]
    assert commit == (await pull("org/versions", revision=commit)).commit


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"model.safetensors": None, "pytorch_model.bin": b"x"}, "only weights for PyTorch"),
        ({"config.json": None}, "no config.json"),
        ({"config.json": disk.config(model_type="nosuch")}, "no architecture `nosuch`"),
        ({"config.json": disk.config(model_file="model.py")}, "code of its own (`model_file`)"),
        ({"config.json": b"[]"}, "holds no JSON object"),
        ({"tokenizer.json": None}, "no tokenizer"),
        (
            {"tokenizer.json": None, "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["x.Y", null]}}'},
            "code of its own (`auto_map`)",
        ),
        ({"model.safetensors.index.json": disk.index("model-9.safetensors")}, "names model-9.safetensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_what_mlx_lm_cannot_load_is_refused_before_its_weights_are_downloaded(hub, pull, cache, files, reason):
    wanted = {name: content for name, content in (disk.model() | files).items() if content is not None}
    hub.publish("org/unloadable", wanted)

    last = await pull("org/unloadable")

    assert ErrorCode.PULL_FAILED == last.code
    assert reason in last.message
    assert [] == [request for request in hub.requests() if request["path"].endswith(".safetensors")]
    assert [] == cache.blobs()


async def test_a_disk_without_room_is_seen_before_the_download(hub, pull, cache):
    last = await pull(LARGE, margin=10**15)

    assert ErrorCode.DISK_FULL == last.code
    assert "free 10" in last.message or "free 9" in last.message
    assert hub.served < 1_000_000


@pytest.fixture
def small_disk(cache):
    """A file system of 40 MB for the cache."""
    cache.path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", cache.path], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield cache.path
    subprocess.run(["umount", "-l", cache.path], check=True)


async def test_a_disk_that_fills_stops_the_pull_and_keeps_what_is_there(hub, pull, pulling, cache, small_disk):
    hub.publish("org/medium", disk.model() | {"model.safetensors": disk.tensors(30_000_000)})
    hub.set(rate=20_000_000)
    async with pulling("org/medium") as (_, reader, _):
        await asyncio.to_thread(hub.wait_served, 8_000_000)
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(24_000_000))
        while not isinstance(last := await reader.read(), messages.HubFailure):
            assert last is not None
    assert ErrorCode.DISK_FULL == last.code
    assert "is full" in last.message
    assert [] == cache.blobs()

    served = hub.served
    ballast.unlink()
    hub.set(rate=None)
    assert isinstance(await pull("org/medium"), messages.Pulled)
    assert hub.served - served < 30_000_000 - 8_000_000 + SLACK // 8


async def test_a_limit_on_the_size_of_files_is_a_failure_in_words(hub, pulling):
    limit = (20_000_000, 20_000_000)
    async with pulling(LARGE) as (child, reader, _):
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, limit)
        while not isinstance(last := await reader.read(), messages.HubFailure):
            assert last is not None
    assert (ErrorCode.DISK_FULL, True) == (last.code, "a limit on the size of files" in last.message)


async def test_a_killed_pull_goes_on_where_it_was(hub, pulling, pull, cache, large_file):
    hub.set(rate=10_000_000)
    for kill in (1, 2):
        async with pulling(LARGE) as (child, _, _):
            await asyncio.to_thread(hub.wait_served, kill * 25_000_000)
            child.send_signal(signal.SIGKILL)
            await child.wait()
    hub.set(rate=None)

    assert isinstance(await pull(LARGE), messages.Pulled)
    assert large_file.read_bytes() == cache.snapshot(LARGE)["model.safetensors"]
    # Far less than is allowed; several parts at once were under way.
    assert hub.served - LARGE_BYTES < SLACK
    ranges = [request["range"] for request in hub.requests("safetensors") if request["where"] == "cdn"]
    assert len(set(ranges)) > 3


async def test_a_file_that_changes_midway_is_begun_again(hub, pulling, pull, cache, large_file):
    hub.set(rate=10_000_000)
    async with pulling(LARGE) as (child, _, _):
        await asyncio.to_thread(hub.wait_served, 20_000_000)
        child.send_signal(signal.SIGKILL)
        await child.wait()
    hub.reset()
    hub.fault("etag", "model.safetensors", times=3)

    assert isinstance(await pull(LARGE), messages.Pulled)
    assert large_file.read_bytes() == cache.snapshot(LARGE)["model.safetensors"]
    assert hub.served >= LARGE_BYTES


async def test_a_server_without_ranges_sends_large_files_in_one_piece(hub, pull, cache, large_file):
    hub.fault("no_range", "model.safetensors", times=-1)

    assert isinstance(await pull(LARGE), messages.Pulled)
    assert large_file.read_bytes() == cache.snapshot(LARGE)["model.safetensors"]


async def test_a_new_commit_receives_only_what_changed(hub, pull, cache):
    hub.publish("org/moving", FILES)
    hub.fault("flip", SHARDS[1], times=-1)
    assert isinstance(await pull("org/moving"), messages.HubFailure)
    changed = FILES | {SHARDS[1]: disk.tensors(200_000)}
    hub.reset()
    hub.publish("org/moving", changed)

    assert isinstance(await pull("org/moving"), messages.Pulled)
    assert changed == cache.snapshot("org/moving")
    assert [] == [request for request in hub.requests(SHARDS[0]) if request["sent"]]


async def test_blobs_of_other_tools_are_used_and_their_half_snapshots_completed(hub, pull, cache, client):
    client(
        "print(json.dumps(snapshot_download(sys.argv[2], cache_dir=sys.argv[1], ignore_patterns=['*00002-of*'])))",
        cache.path,
        REPO,
    )
    hub.reset()

    assert isinstance(await pull(), messages.Pulled)
    assert FILES.items() <= cache.snapshot().items()
    assert len(FILES[SHARDS[1]]) == hub.served


async def test_the_hubs_own_lock_on_a_blob_is_waited_for(hub, pulling, cache):
    lock = cache.path / ".locks" / cache.repo().name / f"{stand_in.etag(SHARDS[0], FILES[SHARDS[0]])}.lock"
    lock.parent.mkdir(parents=True)
    async with pulling() as (child, reader, _):
        with WeakFileLock(lock):
            while (await reader.read()).stage is not PullStage.PLACING:
                pass
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(child.wait(), 0.5)
            assert not (cache.repo() / "snapshots").exists()
        while not isinstance(await reader.read(), messages.Pulled):
            pass


async def test_a_model_is_not_pulled_by_two_processes_at_once(hub, pulling, pull):
    hub.fault("stall", SHARDS[0], after=1000)
    async with pulling():
        await asyncio.to_thread(hub.wait_served, 300_000)
        last = await pull()
    assert "another process" in last.message


async def test_progress_tells_bytes_and_stages_in_order(hub, pulling):
    hub.set(rate=30_000_000)
    frames = []
    async with pulling(LARGE) as (_, reader, _):
        while (frame := await reader.read()) is not None:
            frames.append(frame)
    *told, last = frames
    stages = [frame.stage for frame in told]
    order = list(PullStage)

    assert sorted(stages, key=order.index) == stages
    assert {PullStage.RESOLVING, PullStage.DOWNLOADING, PullStage.PLACING} <= set(stages)
    done = [frame.done for frame in told]
    assert sorted(done) == done
    assert (last.bytes, last.bytes) == (told[-1].done, told[-1].total)
    assert any(frame.bytes_per_second for frame in told)


async def test_it_ends_when_the_daemon_does(hub, pulling):
    hub.fault("stall", SHARDS[0], after=1000)
    async with pulling() as (child, _, writer):
        await asyncio.to_thread(hub.wait_served, 1000)
        writer.close()

        assert 1 == await child.wait()
