"""Which modules import what, and which libraries are loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

import osaurusctl
import osaurusd

ROOT = Path(__file__).parents[2]
PACKAGES = (Path(osaurusd.__file__).parent, Path(osaurusctl.__file__).parent)
HEAVY_LIBRARIES = ("mlx", "mlx_lm", "transformers", "numpy", "torch", "llguidance", "tokenizers", "huggingface_hub")


def module_names() -> list[str]:
    names = []
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            parts = (package.name, *path.relative_to(package).with_suffix("").parts)
            names.append(".".join(part for part in parts if part != "__init__"))
    return names


def run_python(code: str) -> str:
    """Run code in a new interpreter in which warnings are errors, and return its output."""
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert 0 == result.returncode, result.stderr
    return result.stdout.strip()


def loaded_libraries(module: str, libraries: tuple[str, ...]) -> str:
    return run_python(f"import sys, {module}; print(*(name for name in {libraries!r} if name in sys.modules))")


def test_daemon_loads_no_heavy_library() -> None:
    """The daemon runs all the time, so its memory matters."""
    assert "" == loaded_libraries("osaurusd.__main__", HEAVY_LIBRARIES)


def test_cli_loads_no_heavy_library_and_no_server_library() -> None:
    """The CLI starts often, so its start-up time matters."""
    assert "" == loaded_libraries("osaurusctl.cli", (*HEAVY_LIBRARIES, "aiohttp", "asyncio", "structlog", "rich"))


def test_wire_imports_nothing_else_of_the_project() -> None:
    modules = run_python(
        "import sys, osaurusd.wire.admin, osaurusd.wire.errors, osaurusd.wire.paths;"
        "print(*sorted(name for name in sys.modules if name.startswith('osaurus')))"
    )

    assert {"osaurusd", "osaurusd.wire"} == {".".join(name.split(".")[:2]) for name in modules.split()}


@pytest.mark.parametrize(
    ("kind", "preload"),
    [
        ("daemon and CLI", ""),
        # Importing MLX again for each module would take a minute.
        ("worker", "import mlx_lm"),
    ],
)
def test_every_module_can_be_imported_first(kind: str, preload: str) -> None:
    """Import each module in a fork of an interpreter that has not loaded any other module of the project."""
    names = [name for name in module_names() if (".worker" in name) == (kind == "worker")]
    run_python(
        "import os\n"
        f"{preload}\n"
        f"for name in {names!r}:\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        __import__(name)\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(pid, 0)[1] == 0, name\n"
    )


def test_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert 0 == result.returncode, result.stdout
