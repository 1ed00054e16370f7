"""The committed web page is what its sources build."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from osaurusd.wire.page import FOLDER
from tests.clients import install

FRONTEND = FOLDER.parent / "frontend"
BUILD_SECONDS = 200

pytestmark = pytest.mark.clients


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_committed_page_is_what_its_sources_build(tmp_path: Path) -> None:
    programs = install.install_python_clients()
    copy = tmp_path / "frontend"
    shutil.copytree(FRONTEND, copy, ignore=shutil.ignore_patterns("node_modules"))
    npm = str(programs / "npm")
    install.run([npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=copy, path=programs)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    for script in ("check", "test", "build"):
        subprocess.run([npm, "run", script], cwd=copy, env=environment, check=True, timeout=BUILD_SECONDS)

    assert files(FOLDER) == files(tmp_path / "static")
