"""A launchd job: drift, from the output of `launchctl print`, and errors while it is loaded."""

import pytest

from osaurusctl.errors import CliError
from osaurusctl.service import launchctl, launchd, plist
from osaurusctl.service.job import Job, Mode
from osaurusctl.service.launchd import Launchd
from osaurusctl.service.manager import Result

LABEL = "ai.osaurus.osaurusd"


@pytest.fixture
def find_drift(tmp_path):
    """Install a file with `OSAURUS_HOME`, and return the drift for these lines of the loaded job's environment."""
    job = Job(tmp_path / "osaurusd", tmp_path, tmp_path / "logs", env={"OSAURUS_HOME": "/a b"})
    tree = plist.render(job, LABEL)
    service_file = tmp_path / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    service_file.parent.mkdir(parents=True)
    service_file.write_bytes(plist.encode(tree))
    variables = [f"{name} => {value}" for name, value in tree["EnvironmentVariables"].items()]

    def find(added=(), missing=None):
        lines = [line for line in [*variables, *added] if missing is None or not line.startswith(missing)]
        block = "".join(f"\t\t{line}\n" for line in lines)
        output = f"gui/501/{LABEL} = {{\n\tstate = running\n\tenvironment = {{\n{block}\t}}\n\tpid = 4711\n}}\n"

        def run(command, _):
            return Result(0, output if command[1:3] == ["print", f"gui/501/{LABEL}"] else "")

        return Launchd(run, LABEL, Mode.LOGIN, 501, tmp_path).status().drift

    return find


@pytest.mark.parametrize(
    "added",
    [(), [f"XPC_SERVICE_NAME => {LABEL}"], ["OSLogRateLimit => 64", f"XPC_SERVICE_NAME => {LABEL}", "NEW => x"]],
)
def test_variables_that_launchd_adds_are_not_drift(find_drift, added):
    assert [] == find_drift(added)


def test_missing_and_changed_variables_are_drift(find_drift):
    drift = ["the loaded job differs from the file: environment"]

    assert drift == find_drift(missing="OSAURUS_HOME")
    assert drift == find_drift(missing="OSAURUS_HOME", added=["OSAURUS_HOME => /a"])


@pytest.mark.parametrize(
    ("changes", "keys"),
    [({}, None), ({"ExitTimeOut": 5, "Nice": 1}, "ExitTimeOut, Nice"), ({"KeepAlive": 1}, "KeepAlive")],
)
def test_file_that_was_changed_is_drift(tmp_path, changes, keys):
    manager = Launchd(FakeLaunchctl(), LABEL, Mode.LOGIN, 501, tmp_path)
    tree = plist.render(Job(tmp_path / "osaurusd", tmp_path, tmp_path / "logs", env={}), LABEL)
    manager.write_step(plist.encode({**tree, **changes})).run()

    assert ([f"the file differs from what this version writes: {keys}"] if keys else []) == manager.status().drift


class FakeLaunchctl:
    """launchctl of a job that is running once `bootstrap` has succeeded; it fails with the given codes before."""

    def __init__(self, failures=(), fields="\tstate = running\n\tpid = 4711\n\truns = 1\n"):
        self.failures = list(failures)
        self.fields = fields
        self.loaded = False
        self.calls = []

    def __call__(self, command, _):
        verb, *arguments = command[1:]
        self.calls.append(verb)
        if verb == "bootstrap":
            code = self.failures.pop(0) if self.failures else 0
            self.loaded = code == 0
            return Result(code, err=f"Bootstrap failed: {code}: Input/output error" if code else "")
        if verb == "print" and arguments[0].endswith(LABEL):
            return Result(0, f"{arguments[0]} = {{\n{self.fields}}}\n") if self.loaded else Result(launchctl.NO_SERVICE)
        return Result(0)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Install a file, and load it with a launchctl."""
    monkeypatch.setattr(launchd, "_BOOTSTRAP_RETRY_SECONDS", (0,))
    monkeypatch.setattr(launchd, "_SPAWN_SECONDS", 0)

    def load_with(fake, mode=0o644):
        manager = Launchd(fake, LABEL, Mode.LOGIN, 501, tmp_path)
        manager.write_step(manager.render(Job(tmp_path / "osaurusd", tmp_path, tmp_path / "logs", env={}))).run()
        manager.file.chmod(mode)
        manager.load_step().run()

    return load_with


@pytest.mark.parametrize("code", [launchctl.EIO, launchctl.EALREADY, launchctl.ALREADY_LOADED])
def test_temporary_errors_of_launchd_are_retried(load, code):
    load(fake := FakeLaunchctl([code] * 3))

    assert fake.loaded
    assert 4 == fake.calls.count("bootstrap")
    assert "kickstart" not in fake.calls


def test_error_that_lasts_is_reported(load, monkeypatch):
    monkeypatch.setattr(launchd, "_BOOTSTRAP_TIMEOUT_SECONDS", 0)
    with pytest.raises(CliError, match=r"Bootstrap failed: 5: Input/output error\nno known cause"):
        load(FakeLaunchctl([launchctl.EIO] * 3))


def test_permanent_error_is_not_retried(load):
    fake = FakeLaunchctl([launchctl.WRONG_SESSION] * 2)
    with pytest.raises(CliError, match=r"\n`LimitLoadToSessionType` excludes this kind of session$"):
        load(fake)
    assert 1 == fake.calls.count("bootstrap")


def test_file_that_others_can_write_is_reported_without_a_retry(load):
    fake = FakeLaunchctl([launchctl.EIO] * 2)
    with pytest.raises(CliError, match=rf'{LABEL}.plist is writable by other users; run "chmod 644" on it'):
        load(fake, 0o664)
    assert 1 == fake.calls.count("bootstrap")


def test_job_that_launchd_does_not_start_by_itself_is_started(load):
    load(fake := FakeLaunchctl(fields="\tstate = not running\n\truns = 0\n\tlast exit code = (never exited)\n"))

    assert "kickstart" == fake.calls[-1]
