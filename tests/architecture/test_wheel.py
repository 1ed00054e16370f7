"""The built wheel works where there is no checkout."""

import plistlib
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests import daemons

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment that has the wheel, and borrows only what the wheel depends on."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, timeout=300, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    # A .pth file's paths come last, and an editable install's own .pth is not read from them.
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    return folder / "bin"


def test_it_holds_the_launchd_folder_and_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        plist = plistlib.loads(archive.read("osaurusctl/launchd/ai.osaurus.osaurusd.plist"))

    assert "ai.osaurus.osaurusd" == plist["Label"]
    assert [] != [name for name in names if name.endswith("licenses/LICENSE")]
    assert [] == [name for name in names if name.startswith("tests")]


def test_its_programs_work_with_no_checkout_near(installed: Path, home: Path, tmp_path: Path) -> None:
    environment = daemons.environment(home, OSAURUS_PORT="0")
    environment.pop("PYTHONPATH", None)

    def osaurusctl(*arguments: str) -> str:
        command = [installed / "osaurusctl", *arguments]
        run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert 0 == run.returncode, run.stderr
        return run.stdout

    where = subprocess.run(
        [installed / "python", "-c", "import osaurusd, osaurusctl; print(osaurusd.__file__, osaurusctl.__file__)"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(ROOT) not in where

    osaurusctl("up")
    try:
        assert "osaurusd" in osaurusctl("status")
    finally:
        osaurusctl("down")
