"""What may import what, and what stays out of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

import osaurusctl
import osaurusd

PACKAGES = (Path(osaurusd.__file__).parent, Path(osaurusctl.__file__).parent)
HEAVY = ("mlx", "mlx_lm", "transformers", "numpy", "torch", "llguidance", "tokenizers", "huggingface_hub")


def modules() -> list[str]:
    names = []
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            parts = (package.name, *path.relative_to(package).with_suffix("").parts)
            names.append(".".join(part for part in parts if part != "__init__"))
    return names


def python(code: str) -> str:
    """Run code in a fresh interpreter where every warning is an error."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert 0 == run.returncode, run.stderr
    return run.stdout.strip()


def loaded_by(module: str, names: tuple[str, ...]) -> str:
    return python(f"import sys, {module}; print(*(name for name in {names!r} if name in sys.modules))")


def test_the_daemon_loads_no_mlx_and_nothing_that_comes_with_it() -> None:
    """It runs from login on, and must stay small."""
    assert "" == loaded_by("osaurusd.__main__", HEAVY)


def test_the_cli_loads_no_aiohttp_and_nothing_heavy() -> None:
    """It is started many times a day."""
    assert "" == loaded_by("osaurusctl.cli", (*HEAVY, "aiohttp", "asyncio", "structlog", "rich"))


def test_the_wire_is_a_leaf() -> None:
    ours = python(
        "import sys, osaurusd.wire.admin, osaurusd.wire.errors, osaurusd.wire.paths;"
        "print(*sorted(name for name in sys.modules if name.startswith('osaurus')))"
    )

    assert {"osaurusd", "osaurusd.wire"} == {".".join(name.split(".")[:2]) for name in ours.split()}


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("daemon and CLI", ""),
        # Importing MLX anew for every one of its modules would take a minute.
        ("worker", "import mlx_lm"),
    ],
)
def test_every_module_imports_alone(kind: str, first: str) -> None:
    """Each in a fork of an interpreter that has nothing of ours yet."""
    names = [name for name in modules() if (".worker" in name) == (kind == "worker")]
    python(
        "import os\n"
        f"{first}\n"
        f"for name in {names!r}:\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        __import__(name)\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(pid, 0)[1] == 0, name\n"
    )


def test_the_import_contracts_hold() -> None:
    root = Path(__file__).parents[2]
    lint = Path(sys.executable).parent / "lint-imports"
    run = subprocess.run([lint, "--no-cache"], cwd=root, capture_output=True, text=True, timeout=120)

    assert 0 == run.returncode, run.stdout
