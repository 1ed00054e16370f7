"""`pull`, `pulls` and `search`: progress, exit codes and Ctrl-C."""

import json
import signal

import msgspec
import pytest

from osaurusd.wire.errors import ErrorBody
from osaurusd.wire.pulls import FoundModel, PullDone, PullEnded, PullInfo, PullProgress, PullRoute, PullStage, PullState

NAME = "llama-3.2-3b-instruct"
PULL = PullInfo(
    id="0a1b2c3d",
    repo="mlx-community/Llama-3.2-3B-Instruct-4bit",
    revision="main",
    name=NAME,
    state=PullState.RUNNING,
    stage=PullStage.RESOLVING,
)


def progress(stage=PullStage.DOWNLOADING, **fields):
    return PullProgress(pull=msgspec.structs.replace(PULL, stage=stage, **fields))


def build_ended(state=PullState.FAILED, error=None):
    return PullEnded(pull=msgspec.structs.replace(PULL, state=state, stage=None, error=error))


def build_failure(code, message="no"):
    return build_ended(error=ErrorBody(message=message, type="server_error", code=code))


HALF = progress(done=900_000_000, total=1_800_000_000, bytes_per_second=100e6, seconds_left=9.0)
HASHED = progress(PullStage.VERIFYING, done=1_800_000_000, total=1_800_000_000, hashed=1, to_hash=1_800_000_000)


@pytest.fixture
def hub(daemon):
    daemon.pulls = [PULL]
    return daemon


def build_done(fake):
    return PullDone(pull=msgspec.structs.replace(PULL, state=PullState.DONE, stage=None), model=fake.model(NAME))


def test_stages_are_lines_without_a_terminal(hub, ctl, fake, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.pull_events = [
        progress(PullStage.RESOLVING),
        HALF,
        HALF,
        progress(note="the hub returned 503"),
        HASHED,
        build_done(fake),
    ]
    result = ctl("pull", NAME)
    assert result.returncode == 0
    assert result.stdout == f"{NAME} downloaded (1.8 GB, {PULL.repo})\n"
    assert result.stderr.splitlines() == [
        f"{NAME}: resolving",
        f"{NAME}: downloading (1.8 GB, 900 MB already downloaded)",
        "the hub returned 503",
        f"{NAME}: verifying",
        f"{NAME}: done",
    ]
    assert hub.bodies(PullRoute.PULLS) == [{"model": NAME, "token": None}]
    assert hub.bodies(PullRoute.WATCH) == [{"pulls": [PULL.id]}]


def test_token_of_the_environment_is_sent_to_the_daemon(hub, ctl, fake, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.pull_events = [build_done(fake)]
    assert ctl("pull", NAME).returncode == 0
    assert hub.bodies(PullRoute.PULLS) == [{"model": NAME, "token": "hf_x"}]


def test_json_output_has_one_line_per_event(hub, invoke, fake):
    hub.pull_events = [HALF, HASHED, build_done(fake)]
    result = invoke("pull", NAME, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["progress", "progress", "done"]
    assert events[0]["pull"]["seconds_left"] == 9.0
    assert events[-1]["model"]["name"] == NAME
    assert result.stderr == ""


def test_terminal_shows_a_progress_bar_with_rate_and_time_left(hub, terminal, fake):
    hub.pull_events = [HALF, hub.HOLD]
    screen = terminal("pull", NAME)
    screen.expect("0.9/1.8 GB")
    screen.expect("100 MB/s, 9s left")
    screen.type("\x03")
    assert screen.end()[1] == 130


@pytest.mark.parametrize(
    ("event", "code", "message"),
    [
        (build_failure("pull_failed", "checksum mismatch"), 1, "error: checksum mismatch"),
        (build_failure("model_not_found"), 4, 'hint: run "osaurusctl search WORDS"'),
        (build_failure("disk_full"), 1, "free disk space"),
        (build_ended(PullState.CANCELLED), 1, f"error: the download of {NAME} was cancelled"),
        (build_ended(PullState.DONE), 1, "has been removed since"),
    ],
    ids=["failed", "not found", "disk full", "cancelled", "removed"],
)
def test_failed_download_is_an_error(hub, invoke, event, code, message):
    hub.pull_events = [HALF, event]
    result = invoke("pull", NAME)
    assert result.exit_code == code
    assert result.stdout == ""
    assert message in result.stderr


def test_lost_connection_error_says_that_the_download_resumes(hub, invoke):
    hub.pull_events = [HALF]
    result = invoke("pull", NAME)
    assert result.exit_code == 1
    assert "resumes when the daemon starts again" in result.stderr


def test_detach_returns_immediately(hub, invoke):
    hub.pull_events = [hub.HOLD]
    result = invoke("pull", NAME, "--detach", "--json")
    assert result.exit_code == 0
    assert [pull["id"] for pull in json.loads(result.stdout)] == [PULL.id]
    assert hub.bodies(PullRoute.WATCH) == []


def test_ctrl_c_cancels_the_download(hub, spawn):
    hub.pull_events = [HALF, hub.HOLD]
    process = spawn("pull", NAME)
    assert b"downloading" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "pull again to resume it" in stderr.decode()
    assert hub.bodies(PullRoute.CANCEL) == [{"pull": PULL.id}]


def test_pulls_prints_a_table(hub, invoke):
    hub.pulls = [HALF.pull, build_failure("pull_failed", "the reason").pull]
    lines = invoke("pulls").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "DONE", "SIZE", "RATE", "LEFT", "REPO", "REASON"]
    assert lines[1].split() == [NAME, "downloading", "50%", "1.8", "GB", "100", "MB/s", "9s", PULL.repo]
    assert lines[2].endswith("the reason")


def test_pulls_without_downloads_suggests_pull(hub, invoke):
    hub.pulls = []
    result = invoke("pulls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "osaurusctl pull NAME" in result.stderr


def test_download_is_cancelled_by_name(hub, invoke):
    result = invoke("pulls", "--cancel", NAME)
    assert (result.exit_code, hub.bodies(PullRoute.CANCEL)) == (0, [{"pull": NAME}])


def test_search_prints_a_table(hub, invoke):
    hub.search_results = [
        FoundModel(
            repo="org/big", name="big", bytes=9 * 10**12, parameters=10**12, downloads=7, fits=False, gated=True
        ),
        FoundModel(repo="org/unknown", name="unknown", state="available"),
    ]
    lines = invoke("search", "big", "model", "--author", "org").stdout.splitlines()
    assert lines[1].split() == ["org/big", "(gated)", "9.0", "TB", "1.0T", "7", "no", "-", "not", "downloaded"]
    assert lines[2].split() == ["org/unknown", "-", "-", "-", "-", "-", "available"]
    (request,) = hub.bodies(PullRoute.SEARCH)
    assert (request["words"], request["author"]) == ("big model", "org")


def test_search_without_results_suggests_all_authors(hub, invoke):
    result = invoke("search", "x")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "use --all" in result.stderr
