"""The CLI starts fast because it imports little."""

import resource
import subprocess
import sys

import pytest

HEAVY = {
    "aiohttp",
    "asyncio",
    "rich",
    "prompt_toolkit",
    "markdown_it",
    "structlog",
    "mlx",
    "numpy",
    "psutil",
    "readline",
    "huggingface_hub",
    "tomllib",
    "tomlkit",
}


IMPORTED_WHEN_USED = {"osaurusctl.chat.markdown", "osaurusctl.chat.prompt"}


@pytest.mark.parametrize("command", ["ls", "status", "ps", "version"])
def test_common_commands_import_nothing_heavy(daemon, command):
    script = (
        "import sys; from osaurusctl.cli import root\n"
        f"try: root.main([{command!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(result.stderr.rpartition("loaded: ")[2].split())
    assert "osaurusctl" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("command", ["run", "launch", "pull"])
def test_commands_for_models_import_psutil_only_when_they_need_it(home, command):
    script = (
        "import sys; from osaurusctl.cli import root\n"
        f"try: root.main([{command!r}, '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'psutil' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=True)


def test_no_module_imports_the_daemons_libraries(home):
    script = (
        "import importlib, pkgutil, sys, osaurusctl as package\n"
        "names = {module.name for module in pkgutil.walk_packages(package.__path__, 'osaurusctl.')}\n"
        "names = {name for name in names if not name.startswith('osaurusctl.ui.')}\n"
        f"for name in names - {IMPORTED_WHEN_USED}: importlib.import_module(name)\n"
        "assert not {'aiohttp', 'rich', 'prompt_toolkit', 'structlog'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=120, check=True)


def test_command_modules_are_imported_on_first_use(home):
    script = (
        "import sys, osaurusctl.cli\n"
        "assert not [name for name in sys.modules if name.startswith('osaurusctl.commands.')]\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=120, check=True)


def test_ls_is_fast(daemon, ctl):
    """CPU time, so that other processes do not matter. The target is 0.2 s; the limit allows for a slow machine."""
    before = cpu_seconds_of_children()
    assert ctl("ls").returncode == 0
    assert cpu_seconds_of_children() - before < 1


def cpu_seconds_of_children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_reading_the_configuration_does_not_import_tomlkit(home):
    script = (
        "import sys, osaurusctl.cli\n"
        "try: osaurusctl.cli.root.main(['config', 'get'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'tomlkit' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
