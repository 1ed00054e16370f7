"""Installs client programs and libraries in `.cache/clients`, from lists of pinned versions."""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent
CACHE = SOURCE.parents[1] / ".cache" / "clients"

INSTALL_SECONDS = 500


def install_python_clients(name: str = "python") -> Path:
    """Return the `bin` folder of a virtual environment with the packages that `tests/clients/NAME` lists.

    `python` has the clients in Python, and Node.js. The environment of the tests does not have them, because they
    restrict the versions of their dependencies.
    """
    requirements = SOURCE / name / "requirements.txt"

    def install(folder: Path) -> None:
        venv.create(folder, with_pip=True)
        run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)])

    return _once(name, [requirements], install) / "bin"


def install_packages(name: str, programs: Path) -> Path:
    """Return the folder with the npm packages of `tests/clients/NAME`, and with the scripts there.

    Args:
        name: the name of the folder.
        programs: the folder that contains `npm`.
    """
    files = [SOURCE / name / "package.json", SOURCE / name / "package-lock.json"]

    def install(folder: Path) -> None:
        folder.mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder)
        command = [str(programs / "npm"), "ci", "--no-audit", "--no-fund", "--loglevel=error"]
        run(command, cwd=folder, path=programs)

    folder = _once(name, files, install)
    # Scripts find packages next to themselves only.
    for script in (SOURCE / name).glob("*.mjs"):
        shutil.copy(script, folder)
    return folder


def run(command: list[str], *, cwd: Path | None = None, path: Path | None = None) -> None:
    """Run a command; the test is skipped if it fails, as installing needs a network."""
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} if path else None
    try:
        subprocess.run(
            command, cwd=cwd, env=environment, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        pytest.skip(f"{Path(command[0]).name} cannot install the clients: {output.strip()[-500:]}")


def _once(name: str, files: list[Path], install: Callable[[Path], None]) -> Path:
    """Install into a folder whose name depends on the files and the version of Python, unless it exists."""
    digest = hashlib.sha256(repr(sys.version_info[:2]).encode())
    for file in files:
        digest.update(file.read_bytes())
    folder = CACHE / f"{name}-{digest.hexdigest()[:12]}"
    complete = folder / ".complete"
    if not complete.exists():
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        install(folder)
        complete.touch()
    return folder
