"""The launcher: a small script whose path never changes, between the service manager and whichever Python has osaurusd.

A service file that named the Python of a virtual environment would break when that moves, or when Homebrew replaces
the Python it links to, and the system would say nothing. The launcher looks for a Python that can import osaurusd; if
there is none it says so once and looks again, so that a service manager need not restart it over and over.
"""

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from osaurusctl.service import files

_PROBE_SECONDS = 20.0
_BARE_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"

# Where installers put programs; `~` is the home of whoever the service runs as.
_USUAL = ("~/.local/bin/osaurusd", "/opt/homebrew/bin/osaurusd", "/usr/local/bin/osaurusd")

_TEXT = """\
#!/bin/sh
# Written by `osaurusctl install`, which also mends it after osaurusd has moved.
python={python}
said=
while :; do
    if "$python" -P -c 'import osaurusd' 2>/dev/null; then
        exec "$python" -P -m osaurusd "$@"
    fi
    for program in {usual}; do
        if [ -x "$program" ] && "$program" --version >/dev/null 2>&1; then
            exec "$program" "$@"
        fi
    done
    if [ -z "$said" ]; then
        echo "osaurusd: $python cannot import osaurusd; run \\`osaurusctl install\\` from where it is now" >&2
        said=1
    fi
    [ -n "$OSAURUS_SUPERVISED" ] || exit 1
    sleep {pause}
done
"""
_PAUSE_SECONDS = 10


def render(python: Path | None = None) -> str:
    """The script, for the Python that runs this or another one. Links are kept: what they lead to is replaced."""
    usual = " ".join(f'"$HOME/{path[2:]}"' if path.startswith("~/") else path for path in _USUAL)
    return _TEXT.format(python=shlex.quote(str(python or sys.executable)), usual=usual, pause=_PAUSE_SECONDS)


def is_current(path: Path) -> bool:
    """Whether the launcher leads to the environment that this CLI runs in."""
    try:
        return path.read_text(encoding="utf-8") == render()
    except (OSError, UnicodeDecodeError):
        return False


def write(path: Path) -> None:
    """Put the launcher at `path`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.replace(path, render().encode(), 0o755)


def remove(path: Path) -> None:
    """Take the launcher away, and its folder if that is empty then."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def fault(path: Path, variables: Mapping[str, str]) -> str | None:
    """Why the launcher at `path` does not start osaurusd, or None if it does.

    Runs it with the service's `variables` and no others of this session: what works here may not work there.
    """
    env = {"HOME": str(Path.home()), "PATH": _BARE_PATH, **variables}
    try:
        run = subprocess.run(
            [path, "--version"], env=env, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except OSError as error:
        return f"{path}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{path} does not answer"
    if run.returncode:
        lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
        return lines[-1].removeprefix("osaurusd: ")
    return None
