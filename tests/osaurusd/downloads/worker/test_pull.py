"""Pulls with network faults, full disks and killed processes: no wrong or incomplete file ever reaches the cache."""

import asyncio
import json
import resource
import signal
import subprocess

import pytest
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # missing in the package's __all__
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

from osaurusd.downloads import messages
from osaurusd.downloads.worker import snapshot
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import PullStage
from tests.fakes import hub as fake_hub
from tests.osaurusd.models import disk

from .conftest import FILES, LARGE, LARGE_BYTES, REPO, SHARDS, UNWANTED

MAX_REPEATED_BYTES = 32 * 1024 * 1024
"""How much may be downloaded again after a kill."""


async def test_only_required_files_are_installed_in_the_layout_of_huggingface_hub(hub, pull, cache, run_client):
    result = await pull()

    assert messages.Pulled(commit=result.commit, bytes=sum(map(len, FILES.values()))) == result
    assert FILES == cache.snapshot()
    assert [] == cache.staged()
    assert [] == [request for name in UNWANTED for request in hub.requests(f"/{name}") if "resolve" in request["path"]]
    info = run_client(
        "c = scan_cache_dir(sys.argv[1]); (r,) = c.repos; (v,) = r.revisions;"
        "print(json.dumps([r.repo_id, r.size_on_disk, v.commit_hash, sorted(v.refs), [str(w) for w in c.warnings]]))",
        cache.path,
    )
    assert [REPO, result.bytes, result.commit, ["main"], []] == info


async def test_huggingface_hub_considers_the_snapshot_complete_when_offline(hub, pull, cache, run_client):
    hub.publish("org/other", FILES | UNWANTED)
    await pull("org/other")

    snapshot = run_client(
        "patterns = json.loads(sys.argv[2])\n"
        "print(json.dumps(snapshot_download('org/other', cache_dir=sys.argv[1], allow_patterns=patterns)))",
        cache.path,
        json.dumps(DEFAULT_ALLOW_PATTERNS),
        HF_HUB_OFFLINE="1",
    )
    assert str(cache.repo("org/other") / "snapshots") == snapshot.rpartition("/")[0]


@pytest.mark.parametrize("links", [True, False], ids=["links", "files"])
async def test_embedding_model_is_pulled_with_its_modules(hub, pull, cache, monkeypatch, links):
    monkeypatch.setattr(snapshot, "are_symlinks_supported", lambda _: links)
    files = disk.embedder()
    hub.publish("org/embedder", files | {"onnx/model.onnx": b"x", "1_Pooling/evil.py": b"x"})
    await pull("org/embedder")

    root = cache.repo("org/embedder")
    folder = root / "snapshots" / (root / "refs" / "main").read_text()
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == found
    (record,) = await disk.make_catalog(root.parent / "none", root.parent).records()
    assert ("embed", "available") == (record.task, record.state)


async def test_installed_ref_has_the_permissions_of_its_folder(hub, pull, cache):
    refs = cache.repo() / "refs"
    refs.mkdir(parents=True)
    refs.chmod(0o770)
    await pull()

    assert 0o660 == (refs / "main").stat().st_mode & 0o777


async def test_second_pull_downloads_nothing(hub, pull):
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
async def test_pull_recovers_from_a_transient_fault(hub, pull, cache, fault):
    hub.fault(**({"match": SHARDS[0]} | fault))

    result = await pull(stall=0.5)

    assert isinstance(result, messages.Pulled), result
    assert FILES == cache.snapshot()
    assert [] == hub.pending


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": "flip"}, "checksum mismatch"),
        ({"kind": "length"}, "were announced"),
        ({"kind": "status", "status": 404, "where": "hub"}, "404"),
        ({"kind": "status", "status": 503}, "no data for"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else None,
)
async def test_permanent_fault_is_an_error_that_names_the_file(hub, pull, cache, fault, reason):
    hub.fault(match=SHARDS[1], times=-1, **fault)

    result = await pull(retry=0.1)

    assert ErrorCode.PULL_FAILED == result.code
    assert SHARDS[1] in result.message
    assert reason in result.message
    assert [] == cache.blobs()


async def test_pull_waits_for_an_unreachable_hub(hub, start_pull, env):
    env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    async with start_pull(retry=60) as (child, reader, _):
        while not (frame := await reader.read()).note:
            assert PullStage.RESOLVING is frame.stage
        assert "unreachable" in frame.note
        assert "[Errno" not in frame.note
        assert child.returncode is None


async def test_expired_urls_are_renewed(hub, pull, cache):
    hub.set(address_seconds=0.2, rate=600_000)
    hub.fault("cut", SHARDS[0], after=250_000, where="cdn")

    assert isinstance(await pull(), messages.Pulled)
    assert FILES == cache.snapshot()
    assert any(request["status"] == 403 for request in hub.requests(SHARDS[0]))


async def test_token_is_only_sent_to_the_hub_and_not_stored(hub, pull, monkeypatch, cache):
    hub.publish("org/gated", FILES, token="hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    assert isinstance(await pull("org/gated"), messages.Pulled)
    sent = {(request["where"], request["authorization"]) for request in hub.requests("org/gated")}
    assert {("hub", "Bearer hf_secret"), ("cdn", None)} == sent
    assert [] == [path for path in cache.path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]


@pytest.mark.parametrize("token", [None, "hf_wrong"])
async def test_error_for_a_gated_repository_explains_what_to_do(hub, pull, monkeypatch, token):
    hub.publish("org/gated", FILES, token="hf_secret")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    result = await pull("org/gated")

    assert (ErrorCode.FORBIDDEN, True) == (result.code, "accept its terms" in result.message)


async def test_renamed_repository_is_installed_under_the_requested_name(hub, pull, cache):
    hub.publish("org/old-name", {}, renamed_to=REPO)

    assert isinstance(await pull("org/old-name"), messages.Pulled)
    assert FILES == cache.snapshot("org/old-name")


@pytest.mark.parametrize(("repo", "revision"), [("org/none", "main"), (REPO, "v9")])
async def test_unknown_repository_or_revision_is_not_found(hub, pull, repo, revision):
    assert ErrorCode.MODEL_NOT_FOUND == (await pull(repo, revision=revision)).code


async def test_revision_is_installed_with_its_own_ref(hub, pull, cache):
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
        ({"config.json": disk.config(model_type="nosuch")}, "does not support the architecture `nosuch`"),
        ({"config.json": disk.config(model_file="model.py")}, "requires custom code (`model_file`)"),
        ({"config.json": b"[]"}, "config.json is not a JSON object"),
        ({"tokenizer.json": None}, "the tokenizer is missing"),
        ({"tokenizer.json": None, "vocab.json": b"{}", "merges.txt": b""}, "the tokenizer is missing"),
        (
            {"tokenizer.json": None, "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["x.Y", null]}}'},
            "requires custom code (`auto_map`)",
        ),
        ({"model.safetensors.index.json": disk.index("model.safetensors", "x")}, "x does not exist, but"),
        ({"model.safetensors": None, SHARDS[0]: disk.tensors()}, f"{SHARDS[1]} does not exist, but"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_incompatible_model_is_rejected_before_its_weights_are_downloaded(hub, pull, cache, files, reason):
    published = {name: content for name, content in (disk.model() | files).items() if content is not None}
    hub.publish("org/incompatible", published)

    result = await pull("org/incompatible")

    assert ErrorCode.PULL_FAILED == result.code
    assert reason in result.message
    assert [] == [request for request in hub.requests() if request["path"].endswith(".safetensors")]
    assert [] == cache.blobs()


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors.index.json": disk.index(*SHARDS)},
        {"model.safetensors.index.json": b"not JSON"},
        {name: b"\xef\xbb\xbf" + disk.model().get(name, b"{}") for name in ("config.json", "tokenizer_config.json")},
    ],
    ids=["index of other weights", "damaged index", "byte order marks"],
)
async def test_irregular_files_that_do_no_harm_are_downloaded(hub, pull, cache, files):
    hub.publish("org/irregular", disk.model() | files)

    assert isinstance(await pull("org/irregular"), messages.Pulled)
    assert disk.model() | files == cache.snapshot("org/irregular")


async def test_missing_disk_space_is_detected_before_the_download(hub, pull, large_file):
    result = await pull(LARGE, margin=10**15)

    assert ErrorCode.DISK_FULL == result.code
    assert "free up 10" in result.message or "free up 9" in result.message
    assert hub.served < 1_000_000


@pytest.fixture
def small_disk(cache):
    """Put the cache on a file system of 40 MB."""
    cache.path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", cache.path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system requires root")
    yield cache.path
    subprocess.run(["umount", "-l", cache.path], check=True)


async def test_full_disk_stops_the_pull_and_keeps_received_data(hub, pull, start_pull, cache, small_disk):
    hub.publish("org/medium", disk.model() | {"model.safetensors": disk.tensors(30_000_000)})
    hub.fault("stall", "model.safetensors", after=8_000_000)
    async with start_pull("org/medium") as (_, reader, _):
        await asyncio.to_thread(hub.wait_served, 8_000_000)
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(24_000_000))
        hub.release()
        while not isinstance(result := await reader.read(), messages.Failure):
            assert result is not None
    assert ErrorCode.DISK_FULL == result.code
    assert "is full" in result.message
    assert [] == cache.blobs()

    served = hub.served
    ballast.unlink()
    assert isinstance(await pull("org/medium"), messages.Pulled)
    assert hub.served - served < 30_000_000 - 8_000_000 + MAX_REPEATED_BYTES // 8


async def test_error_explains_a_limit_on_file_sizes(hub, start_pull, large_file):
    limit = (20_000_000, 20_000_000)
    hub.fault("stall", "model.safetensors", after=1000, times=-1)
    async with start_pull(LARGE) as (child, reader, _):
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, limit)
        hub.set(faults=[])
        hub.release()
        while not isinstance(result := await reader.read(), messages.Failure):
            assert result is not None
    assert (ErrorCode.DISK_FULL, True) == (result.code, "limit on file sizes" in result.message)


async def test_killed_pull_resumes(hub, start_pull, pull, cache, large_file):
    hub.set(rate=10_000_000)
    # The pull does not end if this process is slow itself.
    hub.fault("stall", "model.safetensors", after=12_000_000, times=-1)
    for kill in (1, 2):
        async with start_pull(LARGE) as (child, _, _):
            await asyncio.to_thread(hub.wait_served, kill * 25_000_000)
            child.send_signal(signal.SIGKILL)
            await child.wait()
    hub.set(rate=None, faults=[])

    assert isinstance(await pull(LARGE), messages.Pulled)
    assert large_file.read_bytes() == cache.snapshot(LARGE)["model.safetensors"]
    assert hub.served - LARGE_BYTES < MAX_REPEATED_BYTES
    # Several parts were received concurrently.
    ranges = [request["range"] for request in hub.requests("safetensors") if request["where"] == "cdn"]
    assert len(set(ranges)) > 3


async def test_file_that_changes_during_the_download_is_restarted(hub, start_pull, pull, cache, large_file):
    hub.fault("stall", "model.safetensors", after=8_000_000, times=-1)
    async with start_pull(LARGE) as (child, _, _):
        await asyncio.to_thread(hub.wait_served, 20_000_000)
        child.send_signal(signal.SIGKILL)
        await child.wait()
    hub.reset()
    hub.fault("etag", "model.safetensors", times=3)

    assert isinstance(await pull(LARGE), messages.Pulled)
    assert large_file.read_bytes() == cache.snapshot(LARGE)["model.safetensors"]
    assert hub.served >= LARGE_BYTES


async def test_large_file_is_received_as_a_whole_if_the_server_ignores_ranges(hub, pull, cache, large_file):
    hub.fault("no_range", "model.safetensors", times=-1)

    assert isinstance(await pull(LARGE), messages.Pulled)
    assert large_file.read_bytes() == cache.snapshot(LARGE)["model.safetensors"]


async def test_new_commit_only_downloads_changed_files(hub, pull, cache):
    hub.publish("org/moving", FILES)
    hub.fault("flip", SHARDS[1], times=-1)
    assert isinstance(await pull("org/moving"), messages.Failure)
    changed = FILES | {SHARDS[1]: disk.tensors(200_000)}
    hub.reset()
    hub.publish("org/moving", changed)

    assert isinstance(await pull("org/moving"), messages.Pulled)
    assert changed == cache.snapshot("org/moving")
    assert [] == [request for request in hub.requests(SHARDS[0]) if request["sent"]]


async def test_incomplete_snapshot_of_another_program_is_completed(hub, pull, cache, run_client):
    run_client(
        "print(json.dumps(snapshot_download(sys.argv[2], cache_dir=sys.argv[1], ignore_patterns=['*00002-of*'])))",
        cache.path,
        REPO,
    )
    hub.reset()

    assert isinstance(await pull(), messages.Pulled)
    assert FILES.items() <= cache.snapshot().items()
    assert len(FILES[SHARDS[1]]) == hub.served


async def test_installation_waits_for_the_lock_of_huggingface_hub(hub, start_pull, cache):
    lock = cache.path / ".locks" / cache.repo().name / f"{fake_hub.etag(SHARDS[0], FILES[SHARDS[0]])}.lock"
    lock.parent.mkdir(parents=True)
    async with start_pull() as (child, reader, _):
        with WeakFileLock(lock):
            while (await reader.read()).stage is not PullStage.PLACING:
                pass
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(child.wait(), 0.5)
            assert not (cache.repo() / "snapshots").exists()
        while not isinstance(await reader.read(), messages.Pulled):
            pass


async def test_model_is_not_pulled_by_two_processes_at_once(hub, start_pull, pull):
    hub.fault("stall", SHARDS[0], after=1000)
    async with start_pull():
        await asyncio.to_thread(hub.wait_served, 300_000)
        result = await pull()
    assert "another process" in result.message


async def test_progress_reports_bytes_and_stages_in_order(hub, start_pull):
    hub.publish("org/medium", disk.model() | {"model.safetensors": disk.tensors(8_000_000)})
    hub.set(rate=4_000_000)
    frames = []
    async with start_pull("org/medium") as (_, reader, _):
        while (frame := await reader.read()) is not None:
            frames.append(frame)
    *progress, result = frames
    stages = [frame.stage for frame in progress]
    order = list(PullStage)

    assert sorted(stages, key=order.index) == stages
    assert {PullStage.RESOLVING, PullStage.DOWNLOADING, PullStage.PLACING} <= set(stages)
    done = [frame.done for frame in progress]
    assert sorted(done) == done
    assert (result.bytes, result.bytes) == (progress[-1].done, progress[-1].total)
    assert any(frame.bytes_per_second for frame in progress)


async def test_process_exits_with_the_daemon(hub, start_pull):
    hub.fault("stall", SHARDS[0], after=1000)
    async with start_pull() as (child, _, writer):
        await asyncio.to_thread(hub.wait_served, 1000)
        writer.close()

        assert 1 == await child.wait()
