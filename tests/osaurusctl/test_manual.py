"""The manual pages of the commands."""

import shutil
import subprocess
from pathlib import Path

import pytest

from osaurusctl import manual
from osaurusctl.cli import COMMANDS

FOLDER = Path(__file__).parents[2] / "man"


def test_pages_are_current():
    """`make man` writes them."""
    assert {file.name: file.read_text() for file in FOLDER.glob("*.1")} == manual.pages()


def test_every_command_has_a_page():
    assert {f"osaurusctl-{command}.1" for command in COMMANDS} | {"osaurusctl.1", "osaurusctl-config-set.1"} <= set(
        manual.pages()
    )


def test_pages_of_removed_commands_are_deleted(tmp_path):
    (tmp_path / "osaurusctl-gone.1").touch()
    manual.write(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(manual.pages())


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_pages_are_valid():
    files = sorted(FOLDER.glob("*.1"))
    result = subprocess.run(["groff", "-man", "-ww", "-z", *files], capture_output=True, text=True, check=True)
    assert result.stderr == ""
