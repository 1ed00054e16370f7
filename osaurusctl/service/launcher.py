"""The launcher: a shell script at a stable path that the service manager runs, and that runs osaurusd.

A service file that names the Python of a virtual environment breaks without any message when the environment moves or
when Homebrew replaces its Python. The launcher searches for a Python that can import osaurusd. If there is none, it
reports that once and keeps searching, so that the service manager does not restart it in a loop.
"""

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from osaurusd.wire.files import replace_file

_CHECK_TIMEOUT_SECONDS = 20.0
_RETRY_SECONDS = 10
_MINIMAL_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"

# Where installers put programs; `~` is the home of the user that the service runs as.
_FALLBACK_PROGRAMS = ("~/.local/bin/osaurusd", "/opt/homebrew/bin/osaurusd", "/usr/local/bin/osaurusd")

_SCRIPT = """\
#!/bin/sh
# Written by `osaurusctl install`. Run that again after osaurusd has moved.
python={python}
warned=
while :; do
    if "$python" -P -c 'import osaurusd' 2>/dev/null; then
        exec "$python" -P -m osaurusd "$@"
    fi
    for program in {fallbacks}; do
        if [ -x "$program" ] && "$program" --version >/dev/null 2>&1; then
            exec "$program" "$@"
        fi
    done
    if [ -z "$warned" ]; then
        echo "osaurusd: $python cannot import osaurusd; run \\"osaurusctl install\\" from the new installation" >&2
        warned=1
    fi
    [ -n "$OSAURUS_SUPERVISED" ] || exit 1
    sleep {retry_seconds}
done
"""


def render(python: Path | None = None) -> str:
    """Return the script for `python`, by default the current one.

    Symbolic links are not resolved: their targets are what upgrades replace.
    """
    fallbacks = " ".join(f'"$HOME/{path[2:]}"' if path.startswith("~/") else path for path in _FALLBACK_PROGRAMS)
    return _SCRIPT.format(
        python=shlex.quote(str(python or sys.executable)), fallbacks=fallbacks, retry_seconds=_RETRY_SECONDS
    )


def is_current(path: Path) -> bool:
    """Whether the launcher at `path` starts the Python environment that this CLI runs in."""
    try:
        return path.read_text(encoding="utf-8") == render()
    except (OSError, UnicodeDecodeError):
        return False


def write(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, render().encode(), 0o755)


def remove(path: Path) -> None:
    """Remove the launcher, and its directory if that is empty."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def check(path: Path, variables: Mapping[str, str]) -> str | None:
    """Run the launcher at `path`; return why it does not start osaurusd, or None if it does.

    Args:
        variables: the service's variables. The launcher gets no others, as under the service manager.
    """
    env = {"HOME": str(Path.home()), "PATH": _MINIMAL_PATH, **variables}
    try:
        completed = subprocess.run(
            [path, "--version"], env=env, capture_output=True, text=True, timeout=_CHECK_TIMEOUT_SECONDS, check=False
        )
    except OSError as error:
        return f"{path}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{path} did not exit within {_CHECK_TIMEOUT_SECONDS:g} s"
    if completed.returncode:
        lines = completed.stderr.strip().splitlines() or [f"exit code {completed.returncode}"]
        return lines[-1].removeprefix("osaurusd: ")
    return None
