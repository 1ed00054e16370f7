"""The launcher finds a Python that has osaurusd, and says so if there is none."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import osaurusd
from osaurusctl.service import launcher


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bin & co" / "osaurusd"


def test_it_runs_the_osaurusd_of_the_python_that_wrote_it(path):
    launcher.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert launcher.fault(path, {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}) is None
    assert launcher.is_current(path)
    run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == f"osaurusd {osaurusd.__version__}\n"


def test_arguments_arrive_as_they_are(path, tmp_path):
    fake = tmp_path / "py thon"
    fake.write_text(
        f'#!/bin/sh\n[ "$2" = -c ] && exit 0\nexec {sys.executable} -c \'import sys; print(sys.argv[1:])\' "$@"\n'
    )
    fake.chmod(0o755)
    path.parent.mkdir()
    path.write_text(launcher.render(fake))
    path.chmod(0o755)
    run = subprocess.run([path, "serve", "a b", "$x", ""], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "['-P', '-m', 'osaurusd', 'serve', 'a b', '$x', '']\n"


def test_a_python_that_is_gone_is_named(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path.parent.mkdir()
    path.write_text(launcher.render(Path("/gone/bin/python")))
    path.chmod(0o755)
    assert "/gone/bin/python cannot import osaurusd" in launcher.fault(path, {})
    assert not launcher.is_current(path)


def test_a_program_in_a_usual_place_stands_in(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    usual = tmp_path / ".local" / "bin" / "osaurusd"
    usual.parent.mkdir(parents=True)
    usual.write_text('#!/bin/sh\necho usual "$@"\n')
    usual.chmod(0o755)
    path.parent.mkdir()
    path.write_text(launcher.render(Path("/gone/bin/python")))
    path.chmod(0o755)
    run = subprocess.run([path, "serve"], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "usual serve\n"


def test_supervised_it_says_so_once_and_goes_on_looking(path, tmp_path):
    path.parent.mkdir()
    # Shorter pauses, so that it looks more than once while the test looks on.
    path.write_text(launcher.render(Path("/gone/bin/python")).replace("sleep 10", "echo looked; sleep 0.1"))
    path.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OSAURUS_SUPERVISED": "launchd"}
    process = subprocess.Popen([path, "serve"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert [process.stdout.readline() for _ in range(3)] == ["looked\n"] * 3
    process.terminate()
    assert len(process.communicate(timeout=30)[1].splitlines()) == 1


def test_what_is_not_there_is_named(tmp_path):
    assert launcher.fault(tmp_path / "gone", {}) == f"{tmp_path / 'gone'}: No such file or directory"
