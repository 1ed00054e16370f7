"""Recommended models, and pulls by approximate names."""

import json
import re
from pathlib import Path

import pytest

from osaurusctl.fuzzy_pull import spellings
from osaurusctl.recommended import MODELS, Task, recommend
from osaurusd.models import embedding, metadata
from osaurusd.models.compatibility import supported_architectures
from osaurusd.wire.pulls import FoundModel, PullDone, PullInfo, PullRoute, PullState
from osaurusd.wire.sizes import format_bytes

README = Path(__file__).parents[2] / "README.md"
FOUND = [
    FoundModel(repo="mlx-community/Qwen3-4B-8bit", name="qwen3-4b-8bit", bytes=10**11, fits=False),
    FoundModel(repo="mlx-community/Qwen3-4B-Other-4bit", name="qwen3-4b-other", bytes=2 * 10**9, fits=True),
    FoundModel(repo="mlx-community/Qwen3-4B-4bit", name="qwen3-4b", bytes=2 * 10**9, fits=True),
]
BEST = "mlx-community/Qwen3-4B-4bit"


@pytest.fixture
def hub(daemon, fake):
    """A daemon that does not know the name `qwen3-4b`, but finds it on the hub."""
    pull = PullInfo(id="1", repo=BEST, revision="main", name="qwen3-4b", state=PullState.DONE)
    daemon.unknown_pulls = {"qwen3-4b"}
    daemon.search_results = FOUND
    daemon.pulls = [pull]
    daemon.pull_events = [PullDone(pull=pull, model=fake.model("qwen3-4b"))]
    return daemon


def requested(daemon):
    return [body["model"] for body in daemon.bodies(PullRoute.PULLS)]


def test_recommended_models_are_listed_without_a_daemon(invoke):
    result = invoke("search", "--recommended")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["TASK", "REPO", "SIZE", "FITS", "NOTES"]
    assert len(lines) == 1 + len(MODELS)


def test_recommended_models_can_be_filtered(invoke):
    models = json.loads(invoke("search", "--recommended", "code", "--json").stdout)
    assert {model["task"] for model in models} == {"code"}
    assert invoke("search", "--recommended", "nonsense").stdout == ""


@pytest.mark.parametrize("budget", [1, 2, 6, 12, 24, 48, 96])
def test_the_largest_model_of_a_task_that_fits_is_the_best_one(budget):
    models = recommend([], budget * 10**9)
    for task in Task:
        fitting = [model for model in models if model.task is task and model.fits]
        assert [model for model in models if model.task is task and model.best] == fitting[-1:]
        assert all(model.bytes < budget * 10**9 for model in fitting)


def test_the_memory_budget_of_the_daemon_decides_what_fits(daemon, invoke):
    daemon.status_override = {"memory_budget_bytes": 3 * 10**9}
    models = json.loads(invoke("search", "--recommended", "--json").stdout)
    assert {model["repo"] for model in models if model["fits"]} == {
        model.repo for model in MODELS if model.bytes < 2.79 * 10**9
    }


def test_without_a_daemon_the_configured_budget_decides_what_fits(home, invoke):
    (home / "config.toml").write_text("[residency]\nbudget_bytes = 1_000_000_000\n")
    models = json.loads(invoke("search", "--recommended", "--json").stdout)
    fitting = {model["repo"] for model in models if model["fits"]}
    assert fitting == {model.repo for model in MODELS if model.bytes < 0.93 * 10**9}


def test_recommended_models_are_supported_and_sorted():
    supported = {Task.EMBED: embedding.EMBEDDERS, Task.RERANK: metadata.ENCODERS}
    for model in MODELS:
        assert model.architecture in supported.get(model.task, supported_architectures())
    assert len({model.repo for model in MODELS}) == len(MODELS)
    assert list(MODELS) == sorted(MODELS, key=lambda model: (list(Task).index(model.task), model.bytes))


def test_readme_shows_models_of_the_list_with_their_sizes():
    sizes = {model.repo: format_bytes(model.bytes) for model in MODELS}
    rows = re.findall(r"^\| \d+ GB \| (.*?) \| (.*?) \|$", README.read_text(), re.MULTILINE)
    assert len(rows) > 4
    for repos, shown in rows:
        assert [sizes[repo.strip("`")] for repo in repos.split(", ")] == shown.split(", ")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemma3", ["gemma3", "gemma-3", "gemma 3"]),
        ("qwen3-4b", ["qwen3-4b", "qwen-3-4b", "qwen 3 4b"]),
        ("Llama 3.2", ["llama 3.2", "llama-3-2", "llama 3 2"]),
        ("phi", ["phi"]),
    ],
)
def test_spellings_of_a_name(name, expected):
    assert list(spellings(name)) == expected


def test_yes_takes_the_first_match_that_fits_and_is_recommended(hub, invoke):
    result = invoke("pull", "qwen3-4b", "--yes")
    assert result.exit_code == 0, result.stderr
    assert requested(hub) == ["qwen3-4b", BEST]
    assert f"pulling {BEST}" in result.stderr


def test_revision_is_kept(hub, invoke):
    hub.unknown_pulls = {"qwen3-4b@v2"}
    assert invoke("pull", "qwen3-4b@v2", "--yes").exit_code == 0
    assert requested(hub) == ["qwen3-4b@v2", f"{BEST}@v2"]


def test_without_a_terminal_the_matches_are_an_error(hub, invoke):
    result = invoke("pull", "qwen3-4b")
    assert result.exit_code == 4
    assert result.stdout == ""
    assert f"  {BEST} (2.0 GB)" in result.stderr.splitlines()
    assert "pass --yes" in result.stderr
    assert requested(hub) == ["qwen3-4b"]
    assert json.loads(invoke("pull", "qwen3-4b", "--json").stdout)["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(("key", "repo"), [("\n", BEST), ("2\n", "mlx-community/Qwen3-4B-Other-4bit")])
def test_terminal_lets_the_user_choose(hub, terminal, key, repo):
    screen = terminal("pull", "qwen3-4b")
    screen.expect(BEST)
    screen.expect("does not fit into memory")
    screen.expect("1 to 3")
    screen.type(key)
    assert screen.end()[1] == 0
    assert requested(hub) == ["qwen3-4b", repo]


@pytest.mark.parametrize("key", ["q\n", "9\n", "\x04"])
def test_nothing_is_pulled_without_a_choice(hub, terminal, key):
    screen = terminal("pull", "qwen3-4b")
    screen.expect("1 to 3")
    screen.type(key)
    shown, code = screen.end()
    assert code == 1
    assert "nothing downloaded" in shown
    assert requested(hub) == ["qwen3-4b"]


def test_a_name_that_the_hub_does_not_find_is_not_found(hub, invoke):
    hub.search_results = []
    result = invoke("pull", "qwen3-4b", "--yes")
    assert result.exit_code == 4
    assert "no model is known by the name `qwen3-4b`" in result.stderr
    authors = {body["author"] for body in hub.bodies(PullRoute.SEARCH)}
    assert authors == {"mlx-community", None}


def test_repository_is_not_searched_for(hub, invoke):
    hub.unknown_pulls = {"org/name"}
    assert invoke("pull", "org/name", "--yes").exit_code == 4
    assert hub.bodies(PullRoute.SEARCH) == []
