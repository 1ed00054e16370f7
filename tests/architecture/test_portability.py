"""`make test` and the scripts run on macOS, too: short socket paths, no /proc, no GNU extensions."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from osaurusd.wire.paths import SOCKET_PATH_LIMIT

ROOT = Path(__file__).parents[2]

# $TMPDIR of a Mac: 49 bytes.
MAC_TMPDIR = "var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T"

SOCKET_TESTS = [
    "tests/osaurusd/http/test_unix_socket.py",
    "tests/osaurusd/platform/test_activation.py",
    "tests/osaurusd/platform/test_service_manager.py",
]

# What the BSD tools and the old GNU make and bash of macOS do not support.
GNU_ONLY = {
    r"\bdate [^|]*%N": "date prints no nanoseconds",
    r"\bsed -i ": "sed -i requires a suffix",
    r"\b(sed|grep)\b[^|]*\\[+?|]": "basic regular expressions have no + ? |",
    r"\bgrep -\w*P": "grep has no Perl expressions",
    r"\breadlink -f": "readlink -f is new",
    r"\bstat -c": "stat has other options",
    r"\b(nproc|setsid|timeout|flock|sha256sum|numfmt|tac) ": "the program does not exist",
    r"\bxargs -r|\bcp -\w*[T]|\bmktemp --|\bhead -n -": "the option does not exist",
    r"^\.ONESHELL|\$\(file |\bdefine \w+ :?=|!= |&:": "make is version 3.81",
    r"\$\{\w+(,,|\^\^|@)|\bmapfile\b|\bdeclare -A": "bash is version 3.2",
}


@pytest.mark.parametrize(
    "file", [file if file == SOCKET_TESTS[0] else pytest.param(file, marks=pytest.mark.long) for file in SOCKET_TESTS]
)
def test_tests_with_sockets_pass_with_the_temporary_directory_of_a_mac(file: str) -> None:
    folder = Path("/tmp", f"osaurus-{os.getpid()}", MAC_TMPDIR)
    folder.mkdir(parents=True)
    assert (
        len(str(folder / "pytest-of-user/pytest-0/popen-gw0/test_name_of_usual_length0/run/admin.sock"))
        > SOCKET_PATH_LIMIT
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", file]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    try:
        run = subprocess.run(
            command, cwd=ROOT, env={**environment, "TMPDIR": str(folder)}, capture_output=True, text=True, timeout=240
        )
        assert 0 == run.returncode, run.stdout
        assert [] == list(folder.iterdir())
    finally:
        for path in (folder, *list(folder.parents)[:-2]):
            path.rmdir()


def test_tests_that_read_proc_are_skipped_elsewhere() -> None:
    readers = [
        path for path in (ROOT / "tests").rglob("*.py") if "/proc/" in path.read_text() and path != Path(__file__)
    ]

    assert readers
    assert [] == [path for path in readers if not re.search(r'sys\.platform != "linux"|\.is_dir\(\)', path.read_text())]


def test_scripts_use_what_macos_has() -> None:
    scripts = [ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / ".ci" / "venv", *(ROOT / "tests").rglob("*.sh")]
    found = [
        f"{script.relative_to(ROOT)}:{number}: {reason}: {line.strip()}"
        for script in scripts
        for number, line in enumerate(script.read_text().splitlines(), 1)
        for pattern, reason in GNU_ONLY.items()
        if re.search(pattern, line) and not line.lstrip().startswith("#")
    ]

    assert [] == found


def test_make_help_describes_every_target() -> None:
    # Variables of a surrounding make would add lines to the output.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "help"]
    text = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert targets is not None
    assert set(targets[1].split()) == {line.split()[0] for line in text.splitlines()}
