"""Text and JSON output of commands, and shell completion."""

import json

import click
import pytest

from osaurusctl import completion
from osaurusctl.cli import COMMANDS, root
from osaurusctl.doctor.check import Context
from osaurusctl.doctor.daemon import check_access
from osaurusctl.doctor.machine import check_vision
from osaurusd import __version__
from osaurusd.wire.admin import API_VERSION, Availability, DaemonStatus, Route, WorkerState
from osaurusd.wire.diagnosis import Diagnosis
from osaurusd.wire.installation import installation
from osaurusd.wire.keys import KeyInfo, Protection


def test_status_shows_the_state_of_the_daemon(daemon, invoke, fake):
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
        f"models     1 available; imported models are in {daemon.home}/models",
        "default    llama-3.2-3b-instruct",
        "memory     4.2 GB of 11.0 GB for models",
        "loaded     llama-3.2-3b-instruct (ready, 2.0 GB)",
        "           qwen (starting, 2.0 GB)",
    ]


def test_status_lists_problems(daemon, invoke):
    daemon.faults = ["the models folder /Volumes/X does not respond", "the disk is full"]
    assert invoke("status").stdout.splitlines()[-2:] == [
        "problems   the models folder /Volumes/X does not respond",
        "           the disk is full",
    ]


@pytest.mark.parametrize(
    ("protection", "row"),
    [
        ({}, "this machine only, no API key required, no TLS"),
        ({"key_required": True, "keys": 2, "tls": True}, "this machine only, API key required (2 keys), TLS"),
        ({"exposed": True, "key_required": True}, "other machines can connect, API key required (no keys), no TLS"),
        (
            {"exposed": True, "key_required": True, "trusts_loopback": True, "keys": 1},
            "other machines can connect, API key required from other machines (1 key), no TLS",
        ),
    ],
)
def test_status_describes_which_clients_can_connect(daemon, invoke, protection, row):
    daemon.status_override = {"protection": protection}
    assert f"access     {row}" in invoke("status").stdout.splitlines()


@pytest.mark.parametrize(
    ("protection", "verdict", "detail"),
    [
        ({}, "ok", "only programs on this machine"),
        ({"key_required": True}, "failure", "no key exists"),
        ({"exposed": True, "key_required": True}, "failure", "no key exists"),
        ({"exposed": True}, "warning", "without an API key"),
        ({"exposed": True, "key_required": True, "keys": 1}, "warning", "without TLS"),
        ({"exposed": True, "key_required": True, "keys": 1, "tls": True}, "ok", "with TLS and an API key"),
    ],
)
def test_doctor_checks_which_clients_can_connect(protection, verdict, detail):
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
    others = dict.fromkeys(("paths", "manager", "service", "config", "diagnosis", "daemon_error"))
    (check,) = check_access(Context(status=status, **others))
    assert (verdict, "access") == (check.verdict, check.name)
    assert detail in check.detail


def test_doctor_says_why_models_accept_text_only():
    diagnosis = Diagnosis(
        installation=installation(),
        stores=[],
        blas=None,
        open_files=1,
        open_files_limit=2,
        vision_refusals={"llava": "images need the extra `vision`"},
    )
    others = dict.fromkeys(("paths", "manager", "service", "config", "status", "daemon_error"))
    (check,) = check_vision(Context(diagnosis=diagnosis, **others))

    assert 'model "llava" does not accept images: images need the extra `vision`' == check.detail
    assert [] == list(check_vision(Context(diagnosis=None, **others)))


def test_status_json_is_the_daemon_status_with_the_service(daemon, invoke):
    result = invoke("status", "--json")
    assert json.loads(result.stdout) == {**daemon.status(), "serving": True, "service": None}


def test_status_suggests_a_restart_after_an_upgrade(daemon, invoke):
    daemon.version = "0.0.9"
    result = invoke("status")
    assert result.exit_code == 0
    last = result.stdout.splitlines()[-1]
    assert __version__ in last
    assert "osaurusctl restart" in last


def test_ps_lists_workers_in_a_table(daemon, invoke, fake):
    daemon.workers = [
        fake.worker("llama", in_flight=2, waiting=1, needs_bytes=18 * 10**8, tokens_per_second=41.25),
        fake.worker("qwen", idle_left_seconds=75.2),
        fake.worker("kept", pinned=True),
        fake.worker(
            "crashed",
            pid=None,
            device=None,
            memory_bytes=0,
            needs_bytes=0,
            state=WorkerState.FAILED,
            last_exit="SIGKILL\nstderr line",
        ),
    ]
    assert invoke("ps").stdout.splitlines() == [
        "MODEL    STATE   MEMORY  RESIDENT  IN FLIGHT       TOK/S  PINNED  UNLOADS IN  DEVICE  PID",
        "llama    ready   1.8 GB  2.1 GB    2 (+1 waiting)  41.2   -       -           gpu     4242",
        "qwen     ready   2.0 GB  2.1 GB    0               -      -       1m 15s      gpu     4242",
        "kept     ready   2.0 GB  2.1 GB    0               -      yes     never       gpu     4242",
        "crashed  failed  -       -         0               -      -       -           -       -",
        "",
        "last exits:",
        "crashed: SIGKILL",
        "  stderr line",
    ]


def test_ps_json_is_a_list_of_workers(daemon, invoke, fake):
    daemon.workers = [fake.worker("llama")]
    assert json.loads(invoke("ps", "--json").stdout)[0]["pid"] == 4242


@pytest.mark.parametrize(("command", "hint"), [("ls", "osaurusctl pull NAME"), ("ps", "osaurusctl load NAME")])
def test_empty_list_suggests_the_next_command(daemon, invoke, command, hint):
    daemon.models = []
    result = invoke(command)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert hint in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["ls", "ps"])
def test_empty_list_in_json_has_no_hint(daemon, invoke, command):
    daemon.models = []
    result = invoke(command, "--json")
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_load_reports_memory_and_load_time(daemon, invoke):
    result = invoke("load", "llama")
    assert result.stdout == "llama loaded on gpu: 2.0 GB in 3.2 s\n"
    assert daemon.bodies(Route.LOAD) == [{"model": "llama"}]


def test_load_json_is_the_worker(daemon, invoke):
    assert json.loads(invoke("load", "llama", "--json").stdout)["load_seconds"] == 3.21


def test_unload_accepts_several_names(daemon, invoke, fake):
    daemon.workers = [fake.worker("a"), fake.worker("b")]
    result = invoke("unload", "a", "b", "--force")
    assert result.stdout == "a unloaded\nb unloaded\n"
    assert daemon.bodies(Route.UNLOAD) == [{"model": "a", "force": True}, {"model": "b", "force": True}]


def test_unload_json_is_one_document_for_all_names(daemon, invoke, fake):
    daemon.workers = [fake.worker("a"), fake.worker("b")]
    assert json.loads(invoke("unload", "a", "b", "--json").stdout) == {"unloaded": ["a", "b"]}


def test_unload_all_sends_one_request(daemon, invoke, fake):
    daemon.workers = [fake.worker("a"), fake.worker("b")]
    assert invoke("unload", "--all").stdout == "a unloaded\nb unloaded\n"
    assert daemon.bodies(Route.UNLOAD) == [{"model": None, "force": False}]


def test_unload_reports_a_model_that_is_not_loaded(daemon, invoke):
    assert invoke("unload", "a").stderr == "not loaded: a\n"
    assert invoke("unload", "--all").stderr == "no model is loaded\n"


@pytest.mark.parametrize("args", [[], ["a", "--all"]])
def test_unload_requires_either_names_or_all(daemon, invoke, args):
    result = invoke("unload", *args)
    assert result.exit_code == 2
    assert "--all" in result.stderr
    assert daemon.requests == []


def test_unload_that_fails_midway_reports_the_models_it_unloaded(daemon, invoke, fake):
    daemon.workers = [fake.worker("a")]
    daemon.missing.add("b")
    result = invoke("unload", "a", "b")
    assert result.exit_code == 4
    assert result.stderr.splitlines()[:2] == ["a unloaded", "error: no model `b`"]


def test_version_shows_both_versions(daemon, invoke):
    daemon.version = "0.0.9"
    result = invoke("version")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"osaurusctl {__version__} (API {API_VERSION})",
        f"osaurusd 0.0.9 (API {API_VERSION}, pid {daemon.pid})",
    ]


def test_version_json_contains_both_versions(daemon, invoke):
    assert json.loads(invoke("version", "--json").stdout) == {
        "version": __version__,
        "api_version": API_VERSION,
        "daemon": {"version": daemon.version, "api_version": API_VERSION, "pid": daemon.pid},
    }


def test_version_succeeds_without_a_daemon(invoke):
    result = invoke("version")
    assert result.exit_code == 0
    assert result.stdout == f"osaurusctl {__version__} (API {API_VERSION})\n"
    assert "not running" in result.stderr
    assert json.loads(invoke("version", "--json").stdout)["daemon"] is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_the_shell(invoke, shell):
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert f"_OSAURUSCTL_COMPLETE={shell}_complete" in result.stdout
    document = json.loads(invoke("--json", "completion", shell).stdout)
    assert document["script"].strip() == result.stdout.strip()


def _set_words(monkeypatch, *arguments):
    """Make the next command complete the last of these arguments, as it does for bash."""
    monkeypatch.setenv("_OSAURUSCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(["osaurusctl", *arguments]))
    monkeypatch.setenv("COMP_CWORD", str(len(arguments)))


@pytest.fixture
def complete(daemon, invoke, monkeypatch):
    """Complete the last of these arguments, and wait for the daemon as long as it takes."""
    monkeypatch.setattr(completion, "_TIMEOUT_SECONDS", None)

    def complete(*arguments):
        _set_words(monkeypatch, *arguments)
        return invoke(prog_name="osaurusctl").stdout

    return complete


def test_completion_of_run_offers_available_models(daemon, complete, fake):
    daemon.models = [fake.model("llama"), fake.model("lama", state=Availability.PARTIAL), fake.model("qwen")]
    assert complete("run", "L") == "plain,llama\n"


def test_completion_offers_aliases(daemon, complete, fake):
    daemon.models = [fake.model("llama", aliases=["fast"])]
    assert complete("run", "") == "plain,llama\nplain,fast\n"
    assert complete("alias", "--rm", "") == "plain,fast\n"


@pytest.mark.parametrize("arguments", [["show"], ["rm", "qwen"], ["verify"], ["alias", "fast"]], ids=" ".join)
def test_completion_offers_unavailable_models_to_commands_on_files(daemon, complete, fake, arguments):
    daemon.models = [fake.model("llama", aliases=["l"]), fake.model("lama", state=Availability.PARTIAL)]
    assert complete(*arguments, "l") == "plain,llama\nplain,lama\n"


@pytest.mark.parametrize("command", ["get", "set", "unset"])
def test_completion_offers_config_keys(complete, command):
    assert complete("config", command, "server.p") == "plain,server.port\n"


def test_completion_of_unload_offers_loaded_models(daemon, complete, fake):
    daemon.workers = [fake.worker("qwen"), fake.worker("crashed", state=WorkerState.FAILED)]
    assert complete("unload", "") == "plain,qwen\n"


def test_completion_of_unpin_offers_pinned_models(daemon, complete):
    daemon.pins = ["qwen"]
    assert complete("unpin", "") == "plain,qwen\n"


def test_completion_of_key_revoke_offers_key_ids(daemon, complete):
    daemon.keys = [KeyInfo(id="a1", name="laptop", created=1), KeyInfo(id="b2", name=None, created=1)]
    assert complete("key", "revoke", "a") == "plain,a1\n"


def test_completion_offers_nothing_without_a_daemon(ctl, monkeypatch):
    for command in ("load", "unload", "show", "rm"):
        _set_words(monkeypatch, command, "")
        result = ctl()
        assert (result.stdout.strip(), result.stderr) == ("", "")


def test_completion_offers_commands(ctl, monkeypatch):
    _set_words(monkeypatch, "st")
    assert "plain,status" in ctl().stdout


def all_commands():
    """The names of all commands and of the commands of groups, such as "config set"."""
    context = click.Context(root, **root.context_settings)
    for name in COMMANDS:
        yield name
        command = root.get_command(context, name)
        if isinstance(command, click.Group):
            yield from (f"{name} {each}" for each in command.commands)


@pytest.mark.parametrize("command", list(all_commands()))
def test_help_has_a_short_summary_and_an_example(invoke, command):
    result = invoke(*command.split(), "-h")
    summary = " ".join(result.stdout.partition("\n\n")[2].partition("\n\n")[0].split())
    assert result.exit_code == 0
    assert 0 < len(summary) < 80
    assert not summary.endswith(".")
    assert "--json" in result.stdout
    assert f"osaurusctl {command}" in result.stdout.partition("Examples:")[2]


@pytest.mark.parametrize("command", list(all_commands()))
def test_help_command_shows_the_same_as_the_option(invoke, command):
    assert invoke("help", *command.split()).stdout == invoke(*command.split(), "--help").stdout


def test_help_without_a_command_lists_the_commands(invoke):
    assert invoke("help").stdout == invoke("--help").stdout


@pytest.mark.parametrize("names", [["nope"], ["ls", "nope"], ["config", "nope"]], ids=" ".join)
def test_help_of_an_unknown_command_is_a_usage_error(invoke, names):
    result = invoke("help", *names)
    assert result.exit_code == 2
    assert '"nope"' in result.stderr


def test_help_groups_the_commands(invoke):
    headings = [line for line in invoke("--help").stdout.splitlines() if line.endswith(":") and line[0].isalpha()]
    assert headings == ["Options:", "Models:", "Running:", "Service:", "Settings:", "Examples:"]


def test_help_lists_every_command_with_its_whole_summary(invoke):
    text = invoke("--help").stdout
    rows = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  ") and len(line.split()) > 1)
    assert set(COMMANDS) <= set(rows)
    assert not [row for name, row in rows.items() if name in COMMANDS and row.endswith("...")]


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_option_shows_the_version_of_osaurusctl(invoke, option):
    assert invoke(option).stdout == f"osaurusctl {__version__}\n"


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [
        ("statsu", "status"),
        ("lst", "list"),
        ("delete", "rm"),
        ("deleet", "rm"),
        ("download", "pull"),
        ("chat", "run"),
        ("pul", "pull"),
        ("uninstll", "uninstall"),
    ],
)
def test_unknown_command_suggests_a_similar_one(invoke, word, suggestion):
    result = invoke(word)
    assert result.exit_code == 2
    assert result.stderr.startswith(f'error: no such command "{word}"; did you mean "')
    assert f'"{suggestion}"' in result.stderr.splitlines()[0]


def test_unknown_command_without_a_similar_one_has_no_suggestion(invoke):
    assert invoke("xyzzy").stderr.splitlines()[0] == 'error: no such command "xyzzy"'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("config", "sett"), 'no such command "sett"; did you mean "set"'),
        (("help", "config", "sett"), 'no such command "sett"; did you mean "set"'),
        (("run", "--temprature", "1"), 'no such option "--temprature"; did you mean "--temperature"?'),
        (("quantize", "llama"), 'missing option "--bits"; choose from 2, 3, 4, 5, 6, 8, mxfp4, nvfp4, mxfp8'),
        (("completion", "tcsh"), 'invalid value for "SHELL": "tcsh" is not one of "bash", "zsh", "fish"'),
    ],
)
def test_usage_error_is_one_line_in_the_same_form_everywhere(invoke, arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0].startswith(f"error: {message}")


def test_list_is_another_name_of_ls(daemon, invoke):
    assert invoke("list", "--json").stdout == invoke("ls", "--json").stdout


def test_stop_with_a_model_unloads_it(daemon, invoke, fake):
    daemon.workers = [fake.worker("llama")]
    result = invoke("stop", "llama", "qwen")
    assert (result.exit_code, result.stdout) == (0, "llama unloaded\n")
    assert daemon.bodies(Route.UNLOAD) == [
        {"model": "llama", "force": False},
        {"model": "qwen", "force": False},
    ]


def test_stop_without_a_model_or_a_service_unloads_nothing(daemon, invoke, fake):
    daemon.workers = [fake.worker("llama")]
    result = invoke("stop")
    assert result.exit_code == 1
    assert 'run "osaurusctl down" to stop the daemon' in result.stderr
    assert daemon.bodies(Route.UNLOAD) == []


def test_serve_becomes_the_daemon(ctl, fake_program, monkeypatch):
    monkeypatch.setenv("FAKE_MODE", "exit")
    result = ctl("serve", "--port", "9000", "--config", "my.toml")
    assert (result.returncode, result.stderr) == (2, "config.toml: unknown key `prot`\n")
    assert fake_program()["argv"] == ["serve", "--port", "9000", "--config", "my.toml"]
