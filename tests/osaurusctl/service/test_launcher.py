"""The launcher finds a Python with osaurusd, and reports if there is none."""

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


def test_launcher_runs_the_osaurusd_of_the_current_python(path, monkeypatch):
    monkeypatch.setattr(launcher, "_CHECK_TIMEOUT_SECONDS", 120)
    launcher.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert launcher.check(path, {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}) is None
    assert launcher.is_current(path)
    run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == f"osaurusd {osaurusd.__version__}\n"


def test_arguments_are_passed_unchanged(path, tmp_path):
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


def test_missing_python_is_named(path, tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "_CHECK_TIMEOUT_SECONDS", 120)
    monkeypatch.setenv("HOME", str(tmp_path))
    path.parent.mkdir()
    path.write_text(launcher.render(Path("/missing/bin/python")))
    path.chmod(0o755)
    assert "/missing/bin/python cannot import osaurusd" in launcher.check(path, {})
    assert not launcher.is_current(path)


def test_installed_program_is_the_fallback(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / ".local" / "bin" / "osaurusd"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho fallback "$@"\n')
    program.chmod(0o755)
    path.parent.mkdir()
    path.write_text(launcher.render(Path("/missing/bin/python")))
    path.chmod(0o755)
    run = subprocess.run([path, "serve"], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "fallback serve\n"


def test_supervised_launcher_reports_once_and_keeps_searching(path, tmp_path):
    path.parent.mkdir()
    # Retry faster, and print a line for each attempt.
    path.write_text(launcher.render(Path("/missing/bin/python")).replace("sleep 10", "echo retry; sleep 0.1"))
    path.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OSAURUS_SUPERVISED": "launchd"}
    process = subprocess.Popen([path, "serve"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert [process.stdout.readline() for _ in range(3)] == ["retry\n"] * 3
    process.terminate()
    assert len(process.communicate(timeout=60)[1].splitlines()) == 1


def test_missing_launcher_is_named(tmp_path):
    assert launcher.check(tmp_path / "missing", {}) == f"{tmp_path / 'missing'}: No such file or directory"
    assert not launcher.is_current(tmp_path / "missing")
