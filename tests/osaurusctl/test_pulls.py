"""`osaurusctl pull`, `pulls` and `search`: what is shown, what the exit codes are, and what Ctrl-C does."""

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


def at(stage=PullStage.DOWNLOADING, **fields):
    return PullProgress(pull=msgspec.structs.replace(PULL, stage=stage, **fields))


def ended(state=PullState.FAILED, error=None):
    return PullEnded(pull=msgspec.structs.replace(PULL, state=state, stage=None, error=error))


def failed(code, message="no"):
    return ended(error=ErrorBody(message=message, type="server_error", code=code))


HALF = at(done=900_000_000, total=1_800_000_000, bytes_per_second=100e6, seconds_left=9.0)
HASHED = at(PullStage.VERIFYING, done=1_800_000_000, total=1_800_000_000, hashed=1, to_hash=1_800_000_000)


@pytest.fixture
def hub(daemon):
    daemon.pulls = [PULL]
    return daemon


def done(fake):
    return PullDone(pull=msgspec.structs.replace(PULL, state=PullState.DONE, stage=None), model=fake.model(NAME))


def test_stages_are_lines_where_nobody_watches(hub, ctl, fake, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.pull_events = [at(PullStage.RESOLVING), HALF, HALF, at(note="the hub answers 503"), HASHED, done(fake)]
    result = ctl("pull", NAME)
    assert result.returncode == 0
    assert result.stdout == f"{NAME} is downloaded (1.8 GB, {PULL.repo})\n"
    assert result.stderr.splitlines() == [
        f"{NAME}: resolving",
        f"{NAME}: downloading (1.8 GB, 900 MB of it here already)",
        "the hub answers 503",
        f"{NAME}: verifying",
        f"{NAME}: done",
    ]
    assert hub.bodies(PullRoute.PULLS) == [{"model": NAME, "token": None}]
    assert hub.bodies(PullRoute.WATCH) == [{"pulls": [PULL.id]}]


def test_the_environments_token_is_handed_over(hub, ctl, fake, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.pull_events = [done(fake)]
    assert ctl("pull", NAME).returncode == 0
    assert hub.bodies(PullRoute.PULLS) == [{"model": NAME, "token": "hf_x"}]


def test_json_is_a_line_an_event(hub, invoke, fake):
    hub.pull_events = [HALF, HASHED, done(fake)]
    result = invoke("pull", NAME, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["progress", "progress", "done"]
    assert events[0]["pull"]["seconds_left"] == 9.0
    assert events[-1]["model"]["name"] == NAME
    assert result.stderr == ""


def test_a_terminal_shows_a_bar_with_rate_and_time_left(hub, terminal, fake):
    hub.pull_events = [HALF, hub.HOLD]
    screen = terminal("pull", NAME)
    screen.expect("0.9/1.8 GB")
    screen.expect("100 MB/s, 9s left")
    screen.type("\x03")
    assert screen.end()[1] == 130


@pytest.mark.parametrize(
    ("event", "code", "said"),
    [
        (failed("pull_failed", "x.safetensors came twice"), 1, "error: x.safetensors came twice"),
        (failed("model_not_found"), 4, "hint: `osaurusctl search WORDS`"),
        (failed("disk_full"), 1, "make room"),
        (ended(PullState.CANCELLED), 1, f"error: the pull of {NAME} was cancelled"),
        (ended(PullState.DONE), 1, "is gone again"),
    ],
    ids=["failed", "not found", "disk full", "cancelled", "removed"],
)
def test_a_pull_that_ends_without_its_model_is_an_error(hub, invoke, event, code, said):
    hub.pull_events = [HALF, event]
    result = invoke("pull", NAME)
    assert result.exit_code == code
    assert result.stdout == ""
    assert said in result.stderr


def test_a_watch_that_breaks_off_says_that_the_pull_goes_on(hub, invoke):
    hub.pull_events = [HALF]
    result = invoke("pull", NAME)
    assert result.exit_code == 1
    assert "goes on once the daemon runs again" in result.stderr


def test_detached_it_returns_at_once(hub, invoke):
    hub.pull_events = [hub.HOLD]
    result = invoke("pull", NAME, "--detach", "--json")
    assert result.exit_code == 0
    assert [pull["id"] for pull in json.loads(result.stdout)] == [PULL.id]
    assert hub.bodies(PullRoute.WATCH) == []


def test_an_interrupt_cancels_and_says_that_the_next_pull_resumes(hub, spawn):
    hub.pull_events = [HALF, hub.HOLD]
    process = spawn("pull", NAME)
    assert b"downloading" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the next pull goes on where this one was" in stderr.decode()
    assert hub.bodies(PullRoute.CANCEL) == [{"pull": PULL.id}]


def test_pulls_are_a_table(hub, invoke):
    hub.pulls = [HALF.pull, failed("pull_failed", "the reason").pull]
    lines = invoke("pulls").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "HERE", "SIZE", "RATE", "LEFT", "REPO", "REASON"]
    assert lines[1].split() == [NAME, "downloading", "50%", "1.8", "GB", "100", "MB/s", "9s", PULL.repo]
    assert lines[2].endswith("the reason")


def test_no_pulls_say_how_to_begin_one(hub, invoke):
    hub.pulls = []
    result = invoke("pulls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "`osaurusctl pull NAME`" in result.stderr


def test_a_pull_is_cancelled_by_name(hub, invoke):
    result = invoke("pulls", "--cancel", NAME)
    assert (result.exit_code, hub.bodies(PullRoute.CANCEL)) == (0, [{"pull": NAME}])


def test_what_the_hub_has_is_a_table(hub, invoke):
    hub.found = [
        FoundModel(
            repo="org/big", name="big", bytes=9 * 10**12, parameters=10**12, downloads=7, fits=False, gated=True
        ),
        FoundModel(repo="org/unknown", name="unknown", state="available"),
    ]
    lines = invoke("search", "big", "model", "--author", "org").stdout.splitlines()
    assert lines[1].split() == ["org/big", "(gated)", "9.0", "TB", "1.0T", "7", "no", "not", "downloaded"]
    assert lines[2].split() == ["org/unknown", "-", "-", "-", "-", "available"]
    (asked,) = hub.bodies(PullRoute.SEARCH)
    assert (asked["words"], asked["author"]) == ("big model", "org")


def test_nothing_found_says_where_else_to_look(hub, invoke):
    result = invoke("search", "x")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "`--all` asks for anybody's" in result.stderr
