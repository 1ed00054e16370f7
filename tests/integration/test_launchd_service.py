"""The service under launchd, from installation to removal, with the installed programs and real processes."""

import json
import os
import plistlib
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemons, macs
from tests.macs import Mac
from tests.models import NO_END_TOKEN, make_tiny

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Continue."}], "max_tokens": 4}


@pytest.fixture
def mac() -> Iterator[Mac]:
    """A Mac with a user logged in at the screen."""
    with macs.mac("gui") as account:
        yield account


@pytest.fixture(scope="module")
def bare_mac() -> Iterator[Mac]:
    """Such a Mac, for the tests in which nothing is installed."""
    with macs.mac("gui") as account:
        yield account


def test_installed_service_answers_a_chat_request_and_doctor_finds_no_failure(mac: Mac, tiny_tokenizer: Path) -> None:
    make_tiny(mac.home / "models" / "tiny", tiny_tokenizer)
    run = mac.run_installed("install", "--port", "0", *mac.path_options)
    assert 0 == run.returncode, run.stderr

    service = mac.service()
    assert [True] * 5 == [service[name] for name in ("installed", "enabled", "loaded", "running", "ready")]
    assert [] == service["drift"]
    assert 1 == service["runs"]
    with mac.post_chat(CHAT) as connection:
        answer = json.loads(connection.getresponse().read())
    assert "assistant" == answer["choices"][0]["message"]["role"]

    run = mac.ctl("doctor", "--json", HF_ENDPOINT="http://127.0.0.1:9")
    document = json.loads(run.stdout)
    assert [] == [check for check in document["checks"] if check["verdict"] == "failure"]
    assert 0 == run.returncode
    names = {check["name"] for check in document["checks"]}
    assert {"launcher", "service file", "job", "daemon", "port", "socket", "models", "hub", "disk"} <= names


def test_second_installation_changes_nothing(mac: Mac) -> None:
    """The file is writable only by its user, and runs the launcher."""
    assert 0 == mac.install("--env", "EXAMPLE=a & b").returncode
    pid = mac.pid
    again = mac.install("--env", "EXAMPLE=a & b")
    assert 0 == again.returncode
    assert f"osaurusd is already installed and running (pid {pid})" == again.stdout.splitlines()[0]
    assert pid == mac.pid

    tree = plistlib.loads(mac.plist.read_bytes())
    assert 0o644 == stat.S_IMODE(mac.plist.stat().st_mode)
    assert [str(mac.home / "bin" / "osaurusd"), "serve", "--port", "0"] == tree["ProgramArguments"]
    assert "a & b" == tree["EnvironmentVariables"]["EXAMPLE"]
    assert str(mac.home) == tree["EnvironmentVariables"]["OSAURUS_HOME"]


@macs.fake_only
@pytest.mark.long
def test_service_starts_at_login(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    mac.logout()
    assert not mac.is_serving()
    mac.login()

    daemons.wait_until(lambda: mac.is_serving())


@macs.fake_only
def test_stop_lasts_until_start_or_the_next_login(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    stopped = mac.ctl("stop")
    assert 0 == stopped.returncode
    assert '"osaurusctl start" or the next login' in stopped.stderr
    service = mac.service()
    assert (False, True) == (service["loaded"], service["enabled"])
    assert 0 == mac.ctl("start").returncode
    assert mac.is_serving()

    assert 0 == mac.ctl("stop").returncode
    mac.logout()
    mac.login()
    daemons.wait_until(lambda: mac.is_serving())


@macs.fake_only
@pytest.mark.long
def test_disabled_service_does_not_start_at_login_but_can_be_started(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    assert 0 == mac.ctl("disable").returncode
    mac.logout()
    mac.login()
    service = mac.service()
    assert (False, False) == (service["loaded"], service["enabled"])

    started = mac.ctl("start")
    assert 0 == started.returncode
    assert "disabled" in started.stderr
    service = mac.service()
    assert (True, False) == (service["ready"], service["enabled"])
    assert 0 == mac.ctl("enable").returncode
    assert mac.service()["enabled"]


@pytest.mark.long
def test_up_and_down_control_the_service(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    assert 0 == mac.ctl("down").returncode
    assert not mac.service()["loaded"]
    up = mac.ctl("up")

    assert 0 == up.returncode
    assert "the service is running" in up.stdout
    assert mac.service()["ready"]


@pytest.mark.long
def test_restart_lets_running_requests_finish(mac: Mac, tiny_tokenizer: Path) -> None:
    make_tiny(mac.home / "models" / "tiny", tiny_tokenizer, eos_token_id=NO_END_TOKEN)
    assert 0 == mac.install().returncode
    pid = mac.service()["pid"]
    with mac.post_chat({**CHAT, "max_tokens": 200, "stream": True}) as connection:
        stream = connection.getresponse()
        stream.readline()
        restarted = mac.ctl("restart")

        assert 0 == restarted.returncode, restarted.stderr
        assert "[DONE]" in stream.read().decode()
    assert mac.service()["ready"]
    assert pid != mac.service()["pid"]


def test_reinstallation_lets_running_requests_finish(mac: Mac, tiny_tokenizer: Path) -> None:
    """The old process drains after bootout has returned; until it exits, bootstrap fails."""
    make_tiny(mac.home / "models" / "tiny", tiny_tokenizer, eos_token_id=NO_END_TOKEN)
    assert 0 == mac.install().returncode
    with mac.post_chat({**CHAT, "max_tokens": 200, "stream": True}) as connection:
        stream = connection.getresponse()
        stream.readline()
        changed = mac.install("--env", "CHANGED=yes")

        assert 0 == changed.returncode, changed.stderr
        assert "[DONE]" in stream.read().decode()
    assert mac.service()["ready"]
    assert b"CHANGED" in mac.plist.read_bytes()


@macs.fake_only
def test_session_without_a_screen_requires_headless_or_system() -> None:
    with macs.mac("user") as mac:
        run = mac.install()
        assert 1 == run.returncode
        assert "no domain gui/" in run.stderr
        assert "--headless" in run.stderr
        assert "--system" in run.stderr

        headless = mac.install("--headless")
        assert 0 == headless.returncode, headless.stderr
        assert "not at boot" in headless.stderr
        assert "Background" == plistlib.loads(mac.plist.read_bytes())["LimitLoadToSessionType"]
        assert ("headless", True) == (mac.service()["mode"], mac.service()["ready"])
        assert 0 == mac.ctl("uninstall").returncode
        assert not mac.plist.exists()


def test_invalid_configuration_is_rejected_before_the_installation(bare_mac: Mac) -> None:
    (bare_mac.home / "config.toml").write_text("prot = 1\n")
    run = bare_mac.install()
    (bare_mac.home / "config.toml").unlink()

    assert 1 == run.returncode
    assert "prot" in run.stderr
    assert not bare_mac.plist.exists()


@pytest.mark.long
def test_installation_replaces_a_daemon_that_up_started(mac: Mac) -> None:
    assert 0 == mac.run_installed("up", "--port", "0").returncode
    before = mac.status()
    assert 0 == mac.install().returncode

    after = mac.status()
    assert before["instance"] != after["instance"]
    assert after["service"]["ready"]


def test_uninstall_keeps_models_and_configuration_unless_purged(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    (mac.home / "config.toml").write_text("")
    assert 0 == mac.ctl("uninstall").returncode
    assert not mac.plist.exists()
    assert not (mac.home / "bin" / "osaurusd").exists()
    assert 3 == mac.ctl("status").returncode
    assert (mac.home / "config.toml").exists()
    again = mac.ctl("uninstall")
    assert (1, True) == (again.returncode, "not installed" in again.stderr)

    assert 2 == mac.ctl("uninstall", "--purge").returncode
    assert 0 == mac.ctl("uninstall", "--purge", "--yes").returncode
    assert [] == list(mac.home.iterdir())


def test_dry_run_prints_file_and_steps_and_changes_nothing(bare_mac: Mac) -> None:
    document = json.loads(bare_mac.install("--dry-run", "--json").stdout)

    assert 0 == plistlib.loads(document["content"].encode())["EnvironmentVariables"]["OSAURUS_HOME"].find(
        str(bare_mac.home)
    )
    assert [f"launchctl enable {bare_mac.target}" in step for step in document["steps"]][-1]
    assert not bare_mac.plist.exists()
    assert not (bare_mac.home / "bin").exists()


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["--env", "HF_TOKEN=hf_abc"], {}, "HF_TOKEN looks like a secret"),
        (["--env", "nonsense"], {}, "KEY=VALUE"),
        (["--env", "OSAURUS_SUPERVISED=no"], {}, "the service sets it"),
        ([], {"HF_ENDPOINT": "https://me:word@hub.example"}, "HF_ENDPOINT looks like a secret"),
        ([], {"XPC_SERVICE_NAME": macs.LABEL}, "inside the service"),
        ([], {"OSAURUS_SERVICE_MANAGER": "none"}, "neither launchd nor systemd"),
    ],
)
def test_invalid_installation_is_rejected(
    bare_mac: Mac, arguments: list[str], env: dict[str, str], message: str
) -> None:
    run = bare_mac.install(*arguments, **env)

    assert 1 == run.returncode
    assert message in run.stderr
    assert not bare_mac.plist.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root")
def test_root_is_rejected(bare_mac: Mac) -> None:
    run = bare_mac.install(OSAURUS_ALLOW_ROOT="")

    assert 1 == run.returncode
    assert "root can neither install nor remove the service" in run.stderr


@pytest.mark.long
def test_command_inside_the_service_cannot_stop_it(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    pid = mac.pid
    for verb in ("stop", "restart", "disable", "uninstall", "down"):
        run = mac.ctl(verb, OSAURUS_SUPERVISED="launchd")
        assert (1, True) == (run.returncode, "inside the service" in run.stderr), verb

    assert pid == mac.pid


@pytest.mark.long
def test_service_of_another_home_is_left_alone(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    other = mac.root / "other"
    for verb in ("install", "stop", "uninstall"):
        run = mac.ctl(verb, OSAURUS_HOME=str(other))
        assert 1 == run.returncode, verb
        assert "another home" in run.stderr or "not installed" in run.stderr
    assert 3 == mac.ctl("status", OSAURUS_HOME=str(other)).returncode
    assert mac.service()["ready"]


@pytest.mark.long
def test_standard_error_file_is_truncated_at_the_next_start(mac: Mac) -> None:
    (mac.home / "logs").mkdir(mode=0o700)
    errors = mac.home / "logs" / "launchd.err.log"
    errors.write_bytes(b"old text!\n" * 200_000)
    assert 0 == mac.install().returncode

    assert 0 == errors.stat().st_size
    kept = errors.with_name("launchd.err.log.1")
    assert 2_000_000 == kept.stat().st_size
    assert 0o600 == stat.S_IMODE(kept.stat().st_mode)
