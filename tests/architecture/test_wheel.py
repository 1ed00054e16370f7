"""The wheel works without a checkout of the repository."""

import plistlib
import re
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
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment with the wheel. Only its dependencies come from the current environment."""
    folder = tmp_path_factory.mktemp("installed")
    # The pip of the tests installs the wheel: to install pip itself would take longer than everything else.
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    command = [*pip, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    # Paths in a .pth file come last, and Python does not process the .pth file of an editable install there.
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    return folder / "bin"


def test_wheel_contains_the_launchd_folder_the_license_and_the_manual_pages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        plist = plistlib.loads(archive.read("osaurusctl/launchd/ai.osaurus.osaurusd.plist"))

    assert "ai.osaurus.osaurusd" == plist["Label"]
    assert [] != [name for name in names if name.endswith("licenses/LICENSE")]
    assert [] != [name for name in names if name.endswith(".data/data/share/man/man1/osaurusctl-run.1")]
    assert [] == [name for name in names if name.startswith("tests")]


def test_wheel_contains_the_built_page_and_all_files_that_it_loads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        document = archive.read("osaurusd/ui/static/index.html").decode()
    loaded = re.findall(r'(?:src|href)="/ui/(assets/[^"]+)"', document)

    assert len(loaded) > 1
    assert [] == [name for name in loaded if f"osaurusd/ui/static/{name}" not in names]
    assert document.count('<meta name="osaurus-mode" content="public">') == 1


def test_installed_programs_work_without_a_checkout(programs: Path, home: Path, tmp_path: Path) -> None:
    environment = daemons.environment(home, OSAURUS_PORT="0")
    environment.pop("PYTHONPATH", None)

    def run(program: str, *arguments: str) -> str:
        command = [programs / program, *arguments]
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert 0 == result.returncode, result.stderr
        return result.stdout

    packages = run("python", "-c", "import osaurusd, osaurusctl; print(osaurusd.__file__, osaurusctl.__file__)")
    assert str(ROOT) not in packages

    try:
        run("osaurusctl", "up")
        assert "osaurusd" in run("osaurusctl", "status")
    finally:
        run("osaurusctl", "down")
