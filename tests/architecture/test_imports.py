"""Which modules import what, and which libraries are loaded."""

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
HEAVY_LIBRARIES = ("mlx", "mlx_lm", "transformers", "numpy", "torch", "llguidance", "tokenizers", "huggingface_hub")


def run_python(code: str) -> str:
    """Run code in a new interpreter in which warnings are errors, and return its output."""
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert 0 == result.returncode, result.stderr
    return result.stdout.strip()


def loaded_libraries(module: str, libraries: tuple[str, ...]) -> str:
    return run_python(f"import sys, {module}; print(*(name for name in {libraries!r} if name in sys.modules))")


def test_daemon_loads_no_heavy_library() -> None:
    """The daemon runs all the time, so its memory matters."""
    on_first_use = ("importlib.metadata", "sqlite3", "cryptography", "truststore", "httpx2", "jinja2", "prompt_toolkit")
    assert "" == loaded_libraries("osaurusd.serve", (*HEAVY_LIBRARIES, *on_first_use, "rich", "click", "tomlkit"))


def test_daemon_defines_no_dataclass_at_the_start() -> None:
    """Defining one takes as long as importing a small module; a struct takes a fortieth of it."""
    classes = run_python(
        "import dataclasses, sys, osaurusd.serve\n"
        "modules = [module for name, module in list(sys.modules.items()) if name.startswith('osaurusd.')]\n"
        "classes = {each for module in modules for each in vars(module).values() if isinstance(each, type)}\n"
        "print(*sorted(f'{each.__module__}.{each.__name__}' for each in classes if dataclasses.is_dataclass(each)))"
    )

    assert "" == classes


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_help_and_version_of_the_daemon_need_no_server_and_no_library(option: str) -> None:
    loaded = run_python(
        "import contextlib, io, sys\n"
        "before = set(sys.modules)\n"
        "from osaurusd import __main__ as daemon\n"
        f"sys.argv = ['osaurusd', {option!r}]\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    daemon.main()\n"
        "loaded = sorted(set(sys.modules) - before)\n"
        "print(*(name for name in loaded if name.split('.')[0] not in sys.stdlib_module_names))"
    )

    assert ["osaurusd", "osaurusd.__main__", "osaurusd.wire", "osaurusd.wire.machine"] == loaded.split()


def test_cli_loads_no_heavy_library_and_no_server_library() -> None:
    """The CLI starts often, so its start-up time matters."""
    assert "" == loaded_libraries("osaurusctl.cli", (*HEAVY_LIBRARIES, "aiohttp", "asyncio", "structlog", "rich"))


@pytest.mark.parametrize(
    ("arguments", "environment", "libraries"),
    [
        (["--version"], {}, ("ssl", "http.client", "osaurusd.config")),
        (["--help"], {}, ("tomlkit", "prompt_toolkit", "importlib.metadata")),
        # What the shell runs to complete the name of a command.
        ([], {"_OSAURUSCTL_COMPLETE": "bash_complete", "COMP_WORDS": "osaurusctl l", "COMP_CWORD": "1"}, ()),
    ],
    ids=["version", "help", "completion"],
)
def test_help_version_and_completion_of_the_cli_need_only_light_libraries(
    arguments: list[str], environment: dict[str, str], libraries: tuple[str, ...]
) -> None:
    unwanted = (*HEAVY_LIBRARIES, "aiohttp", "asyncio", "structlog", "rich", "psutil", *libraries)
    loaded = run_python(
        "import contextlib, io, os, sys\n"
        "from osaurusctl import __main__ as ctl\n"
        f"sys.argv = ['osaurusctl', *{arguments!r}]\n"
        f"os.environ |= {environment!r}\n"
        "output = io.TextIOWrapper(io.BytesIO())\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(output):\n"
        "    ctl.main()\n"
        "output.flush()\n"
        "assert output.buffer.getvalue()\n"
        f"print(*(name for name in {unwanted!r} if name in sys.modules))"
    )

    assert "" == loaded


def test_wire_imports_nothing_else_of_the_project() -> None:
    modules = run_python(
        "import sys, osaurusd.wire.admin, osaurusd.wire.errors, osaurusd.wire.paths;"
        "print(*sorted(name for name in sys.modules if name.startswith('osaurus')))"
    )

    assert {"osaurusd", "osaurusd.wire"} == {".".join(name.split(".")[:2]) for name in modules.split()}


def test_modules_have_no_import_cycle() -> None:
    graph = grimp.build_graph("osaurusd", "osaurusctl", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}

    assert {"osaurusd.app", "osaurusctl.cli"} <= imports.keys()
    TopologicalSorter(imports).prepare()


def test_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=240)

    assert 0 == result.returncode, result.stdout
