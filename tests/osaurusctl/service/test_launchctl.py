"""The parser of launchctl's output, whose format is not stable."""

import pytest

from osaurusctl.service.launchctl import Launchctl, Target, parse_job
from osaurusctl.service.manager import Result

TARGET = Target("gui/501", "ai.osaurus.osaurusd")

RUNNING = """\
gui/501/ai.osaurus.osaurusd = {
\tactive count = 1
\tpath = /Users/u/Library/LaunchAgents/ai.osaurus.osaurusd.plist
\ttype = LaunchAgent
\tstate = running

\tprogram = /Users/u/a = b/osaurusd
\targuments = {
\t\t/Users/u/a = b/osaurusd
\t\tserve
\t}

\tenvironment = {
\t\tXPC_SERVICE_NAME => ai.osaurus.osaurusd
\t}

\truns = 3
\tpid = 4711
\tlast exit code = 1

\tresource coalition = {
\t\tID = 1
\t\tstate = active
\t\tpid = 1
\t}

\tspawn type = interactive (4)
}
"""


def job_output(*lines):
    return "gui/501/x = {\n" + "".join(f"\t{line}\n" for line in lines) + "}\n"


def test_only_fields_of_the_job_itself_are_parsed():
    job = parse_job(RUNNING)
    assert (job.state, job.pid, job.number("runs"), job.last_exit) == ("running", 4711, 3, "1")
    assert job.fields["program"] == "/Users/u/a = b/osaurusd"
    assert job.fields["spawn type"] == "interactive (4)"
    assert job.blocks["arguments"] == ["/Users/u/a = b/osaurusd", "serve"]


@pytest.mark.parametrize(
    ("lines", "pid"),
    [([], None), (["pid = 0"], None), (["pid = -1"], None), (["pid = (none)"], None), (["pid = 7"], 7)],
)
def test_pid_is_a_positive_number(lines, pid):
    assert parse_job(job_output(*lines)).pid == pid


@pytest.mark.parametrize(
    ("lines", "last_exit"),
    [
        ([], None),
        (["last exit code = (never exited)"], None),
        (["last exit code = 0"], "0"),
        (["last exit code = 78: EX_CONFIG"], "78: EX_CONFIG"),
        (["last terminating signal = Killed: 9"], "Killed: 9"),
    ],
)
def test_last_exit_is_the_text_of_launchd(lines, last_exit):
    assert parse_job(job_output(*lines)).last_exit == last_exit


@pytest.mark.parametrize("text", ["", "nonsense", "\t}\n\t= {\n", "x = {\n\targuments = {\n\t\ta\n"])
def test_malformed_output_is_an_unknown_state(text):
    assert parse_job(text).state == "unknown"


@pytest.mark.parametrize(
    ("text", "disabled"),
    [
        ('\tdisabled services = {\n\t\t"ai.osaurus.osaurusd" => disabled\n\t}\n', True),
        ('disabled services = {\n\t"ai.osaurus.osaurusd" => true\n}\n', True),
        ('\tdisabled services = {\n\t\t"ai.osaurus.osaurusd" => enabled\n\t}\n', False),
        ('disabled services = {\n\t"ai.osaurus.osaurusd" => false\n}\n', False),
        ('\tdisabled services = {\n\t\t"ai.osaurus.osaurusd.other" => disabled\n\t}\n', False),
        ("\tdisabled services = {\n\t}\n", False),
    ],
)
def test_both_formats_of_print_disabled_are_parsed(text, disabled):
    assert Launchctl(lambda *_: Result(0, text)).is_disabled(TARGET) is disabled


def test_methods_run_launchctl_subcommands():
    calls = []

    def run(command, _):
        calls.append(" ".join(command))
        return Result(0)

    ctl = Launchctl(run, ["sudo"])
    ctl.bootstrap("system", "/x y.plist")
    ctl.bootout(TARGET, 1)
    ctl.kickstart(TARGET, kill=True)
    ctl.kill(TARGET)
    assert calls == [
        "sudo launchctl bootstrap system /x y.plist",
        f"sudo launchctl bootout {TARGET}",
        f"sudo launchctl kickstart -k {TARGET}",
        f"sudo launchctl kill SIGTERM {TARGET}",
    ]
