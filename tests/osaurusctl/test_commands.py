"""Every command says the right thing, to people and to programs."""

import json

import pytest

from osaurusctl.doctor.check import Patient
from osaurusctl.doctor.daemon import exposure
from osaurusd import __version__
from osaurusd.wire.admin import API_VERSION, DaemonStatus, ModelState, Route, WorkerState
from osaurusd.wire.keys import KeyInfo, Protection


def test_status_shows_how_the_daemon_is(daemon, invoke, fake):
    daemon.workers = [fake.worker("llama-3.2-3b-instruct"), fake.worker("qwen", state=WorkerState.STARTING)]
    daemon.default_model = "llama-3.2-3b-instruct"
    result = invoke("status")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        f"version    {__version__}",
        f"pid        {daemon.pid}",
        "uptime     3m 12s",
        "endpoints  http://127.0.0.1:8080",
        "           http://[::1]:8080",
        f"socket     {daemon.home}/run/admin.sock",
        f"config     {daemon.home}/config.toml",
        f"log        {daemon.home}/logs/osaurusd.log",
        f"models     1 available, imported ones in {daemon.home}/models",
        "default    llama-3.2-3b-instruct",
        "memory     4.2 GB of 11.0 GB for models",
        "loaded     llama-3.2-3b-instruct (ready, 2.1 GB)",
        "           qwen (starting, 2.1 GB)",
    ]


def test_status_shows_what_is_amiss(daemon, invoke):
    daemon.faults = ["the models folder /Volumes/X does not answer", "the disk is full"]
    assert invoke("status").stdout.splitlines()[-2:] == [
        "faults     the models folder /Volumes/X does not answer",
        "           the disk is full",
    ]


@pytest.mark.parametrize(
    ("protection", "row"),
    [
        ({}, "this machine only, no API key asked for, no TLS"),
        ({"key_required": True, "keys": 2, "tls": True}, "this machine only, API key needed (2 there), TLS"),
        ({"exposed": True, "key_required": True}, "other machines too, API key needed (none there), no TLS"),
        (
            {"exposed": True, "key_required": True, "trusts_loopback": True, "keys": 1},
            "other machines too, API key needed, not on this machine (1 there), no TLS",
        ),
    ],
)
def test_status_shows_who_gets_in(daemon, invoke, protection, row):
    daemon.status_override = {"protection": protection}
    assert f"access     {row}" in invoke("status").stdout.splitlines()


@pytest.mark.parametrize(
    ("protection", "verdict", "found"),
    [
        ({}, "ok", "only programs on this machine"),
        ({"key_required": True}, "failure", "there is none"),
        ({"exposed": True, "key_required": True}, "failure", "there is none"),
        ({"exposed": True}, "warning", "nobody is asked"),
        ({"exposed": True, "key_required": True, "keys": 1}, "warning", "without TLS"),
        ({"exposed": True, "key_required": True, "keys": 1, "tls": True}, "ok", "over TLS and with an API key"),
    ],
)
def test_doctor_judges_who_gets_in(protection, verdict, found):
    status = DaemonStatus(
        version=__version__,
        api_version=API_VERSION,
        pid=1,
        instance="0123",
        uptime_seconds=1,
        endpoints=[],
        socket="",
        config_file="",
        log_file="",
        models_dir="",
        default_model=None,
        models_available=0,
        workers=[],
        protection=Protection(**protection),
    )
    nothing = dict.fromkeys(("paths", "manager", "facts", "config", "diagnosis", "unanswered"))
    (check,) = exposure(Patient(status=status, **nothing))
    assert (verdict, "access") == (check.verdict, check.name)
    assert found in check.found


def test_status_json_is_the_wire_object_and_the_service(daemon, invoke):
    result = invoke("status", "--json")
    assert json.loads(result.stdout) == {**daemon.status(), "serving": True, "service": None}


def test_status_of_another_version_says_how_to_finish_the_upgrade(daemon, invoke):
    daemon.version = "0.0.9"
    result = invoke("status")
    assert result.exit_code == 0
    last = result.stdout.splitlines()[-1]
    assert __version__ in last
    assert "`osaurusctl restart`" in last


def test_ps_lists_workers_in_columns(daemon, invoke, fake):
    daemon.workers = [
        fake.worker("llama", in_flight=2, waiting=1, estimated_bytes=2 * 10**9, tokens_per_second=41.25),
        fake.worker("qwen", idle_left_seconds=75.2),
        fake.worker("kept", pinned=True),
        fake.worker(
            "gone", pid=None, device=None, memory_bytes=0, state=WorkerState.FAILED, last_exit="SIGKILL\nwords"
        ),
    ]
    assert invoke("ps").stdout.splitlines() == [
        "MODEL  STATE   MEMORY  ESTIMATED  IN FLIGHT       TOK/S  PINNED  UNLOADS IN  DEVICE  PID",
        "llama  ready   2.1 GB  2.0 GB     2 (+1 waiting)  41.2   -       -           gpu     4242",
        "qwen   ready   2.1 GB  -          0               -      -       1m 15s      gpu     4242",
        "kept   ready   2.1 GB  -          0               -      yes     never       gpu     4242",
        "gone   failed  0 B     -          0               -      -       -           -       -",
        "",
        "last exits:",
        "gone: SIGKILL",
        "  words",
    ]


def test_ps_json_is_the_list(daemon, invoke, fake):
    daemon.workers = [fake.worker("llama")]
    assert json.loads(invoke("ps", "--json").stdout)[0]["pid"] == 4242


@pytest.mark.parametrize(("command", "hint"), [("ls", "`osaurusctl pull NAME`"), ("ps", "`osaurusctl load NAME`")])
def test_an_empty_list_says_what_to_do_next(daemon, invoke, command, hint):
    daemon.models = []
    result = invoke(command)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert hint in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["ls", "ps"])
def test_an_empty_list_in_json_is_just_empty(daemon, invoke, command):
    daemon.models = []
    result = invoke(command, "--json")
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_load_waits_and_says_what_it_took(daemon, invoke):
    result = invoke("load", "llama")
    assert result.stdout == "llama is loaded on gpu: 2.1 GB in 3.2 s\n"
    assert daemon.bodies(Route.LOAD) == [{"model": "llama"}]


def test_load_json_is_the_worker(daemon, invoke):
    assert json.loads(invoke("load", "llama", "--json").stdout)["load_seconds"] == 3.21


def test_unload_takes_several_names(daemon, invoke, fake):
    daemon.workers = [fake.worker("a"), fake.worker("b")]
    result = invoke("unload", "a", "b", "--force")
    assert result.stdout == "a is unloaded\nb is unloaded\n"
    assert daemon.bodies(Route.UNLOAD) == [{"model": "a", "force": True}, {"model": "b", "force": True}]


def test_unload_json_is_one_document_for_all_names(daemon, invoke, fake):
    daemon.workers = [fake.worker("a"), fake.worker("b")]
    assert json.loads(invoke("unload", "a", "b", "--json").stdout) == {"unloaded": ["a", "b"]}


def test_unload_all_is_one_call(daemon, invoke, fake):
    daemon.workers = [fake.worker("a"), fake.worker("b")]
    assert invoke("unload", "--all").stdout == "a is unloaded\nb is unloaded\n"
    assert daemon.bodies(Route.UNLOAD) == [{"model": None, "force": False}]


def test_unload_of_what_is_not_loaded_says_so(daemon, invoke):
    assert invoke("unload", "a").stderr == "not loaded: a\n"
    assert invoke("unload", "--all").stderr == "nothing was loaded\n"


@pytest.mark.parametrize("args", [[], ["a", "--all"]])
def test_unload_needs_either_names_or_all(daemon, invoke, args):
    result = invoke("unload", *args)
    assert result.exit_code == 2
    assert "`--all`" in result.stderr
    assert daemon.requests == []


def test_unload_that_fails_midway_says_what_it_did(daemon, invoke, fake):
    daemon.workers = [fake.worker("a")]
    daemon.missing.add("b")
    result = invoke("unload", "a", "b")
    assert result.exit_code == 4
    assert result.stderr.splitlines()[:2] == ["a is unloaded", "error: no model `b`"]


def test_version_shows_both_versions(daemon, invoke):
    daemon.version = "0.0.9"
    result = invoke("version")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"osaurusctl {__version__} (API {API_VERSION})",
        f"osaurusd 0.0.9 (API {API_VERSION}, pid {daemon.pid})",
    ]


def test_version_json_holds_both(daemon, invoke):
    assert json.loads(invoke("version", "--json").stdout) == {
        "version": __version__,
        "api_version": API_VERSION,
        "daemon": {"version": daemon.version, "api_version": API_VERSION, "pid": daemon.pid},
    }


def test_version_without_a_daemon_is_no_failure(invoke):
    result = invoke("version")
    assert result.exit_code == 0
    assert result.stdout == f"osaurusctl {__version__} (API {API_VERSION})\n"
    assert "not running" in result.stderr
    assert json.loads(invoke("version", "--json").stdout)["daemon"] is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_script(invoke, shell):
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert f"_OSAURUSCTL_COMPLETE={shell}_complete" in result.stdout
    document = json.loads(invoke("--json", "completion", shell).stdout)
    assert document["script"].strip() == result.stdout.strip()


def _complete(ctl, monkeypatch, *words):
    monkeypatch.setenv("_OSAURUSCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(["osaurusctl", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    return ctl()


def test_completion_offers_models_that_can_be_served(daemon, ctl, monkeypatch, fake):
    daemon.models = [fake.model("llama"), fake.model("lama", state=ModelState.PARTIAL), fake.model("qwen")]
    result = _complete(ctl, monkeypatch, "run", "L")
    assert result.stdout == "plain,llama\n"


def test_completion_offers_aliases_to_run(daemon, ctl, monkeypatch, fake):
    daemon.models = [fake.model("llama", aliases=["fast"])]
    assert _complete(ctl, monkeypatch, "run", "").stdout == "plain,llama\nplain,fast\n"
    assert _complete(ctl, monkeypatch, "alias", "--rm", "").stdout == "plain,fast\n"


@pytest.mark.parametrize("words", [["show"], ["rm", "qwen"], ["verify"], ["alias", "fast"]], ids=" ".join)
def test_completion_offers_every_model_where_its_files_matter(daemon, ctl, monkeypatch, fake, words):
    daemon.models = [fake.model("llama", aliases=["l"]), fake.model("lama", state=ModelState.PARTIAL)]
    assert _complete(ctl, monkeypatch, *words, "l").stdout == "plain,llama\nplain,lama\n"


@pytest.mark.parametrize("command", ["get", "set", "unset"])
def test_completion_offers_config_keys(ctl, monkeypatch, command):
    assert _complete(ctl, monkeypatch, "config", command, "server.p").stdout == "plain,server.port\n"


def test_completion_of_unload_offers_loaded_models(daemon, ctl, monkeypatch, fake):
    daemon.workers = [fake.worker("qwen"), fake.worker("gone", state=WorkerState.FAILED)]
    assert _complete(ctl, monkeypatch, "unload", "").stdout == "plain,qwen\n"


def test_completion_of_unpin_offers_pinned_models(daemon, ctl, monkeypatch):
    daemon.pins = ["qwen"]
    assert _complete(ctl, monkeypatch, "unpin", "").stdout == "plain,qwen\n"


def test_completion_of_revoke_offers_the_ids_of_keys(daemon, ctl, monkeypatch):
    daemon.keys = [KeyInfo(id="a1", name="laptop", created=1), KeyInfo(id="b2", name=None, created=1)]
    assert _complete(ctl, monkeypatch, "key", "revoke", "a").stdout == "plain,a1\n"


def test_completion_is_silent_without_a_daemon(ctl, monkeypatch):
    for command in ("load", "unload", "show", "rm"):
        result = _complete(ctl, monkeypatch, command, "")
        assert (result.stdout.strip(), result.stderr) == ("", "")


def test_completion_offers_the_commands(ctl, monkeypatch):
    assert "plain,status" in _complete(ctl, monkeypatch, "st").stdout


@pytest.mark.parametrize(
    "command",
    [
        *(
            "up",
            "down",
            "reload",
            "key",
            "status",
            "ls",
            "show",
            "ps",
            "run",
            "load",
            "unload",
            "pin",
            "unpin",
            "top",
            "import",
            "alias",
            "verify",
        ),
        *("rm", "prune", "config", "version", "completion"),
    ],
)
def test_every_command_explains_itself(invoke, command):
    assert command in invoke("--help").stdout
    result = invoke(command, "-h")
    assert result.exit_code == 0
    assert "--json" in result.stdout
