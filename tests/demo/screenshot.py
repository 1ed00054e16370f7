"""`make screenshot`: run a session with the starter model, and save what it prints as docs/images/terminal.svg."""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from osaurusd.imports.worker.importer import import_model
from tests import daemons, starter_model

TARGET = Path(__file__).parents[2] / "docs" / "images" / "terminal.svg"
MODEL = "smollm2-135m-instruct"
COLUMNS = 104
POLL_SECONDS = 0.5

SESSION = (
    ("search", "--recommended", "chat"),
    ("ls",),
    ("run", MODEL, "What is the capital of France?"),
    ("ps",),
    ("config", "set", "residency.keep_alive_seconds", "15m"),
)

# rich's template loads fonts from another host.
_FONT_FACES = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory(prefix="osaurus-", dir="/tmp") as name:
        home = Path(name)
        folder = home / "models" / MODEL
        folder.mkdir(parents=True)
        import_model(starter_model.fetch(), folder, lambda *_: None)
        with daemons.running(home) as daemon:
            for arguments in SESSION:
                # The rate of a short answer is an average that includes the time since it ended.
                while any(worker["tokens_per_second"] for worker in daemon.admin("GET", "/v0/workers")[1]):
                    time.sleep(POLL_SECONDS)
                show(console, home, arguments)
    TARGET.parent.mkdir(exist_ok=True)
    svg = console.export_svg(title="osaurusctl", unique_id="terminal")
    TARGET.write_text(_FONT_FACES.sub("", svg), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")


def show(console: Console, home: Path, arguments: tuple[str, ...]) -> None:
    """Run one command and record it with its output."""
    command = " ".join(f'"{each}"' if " " in each else each for each in ("osaurusctl", *arguments))
    program = shutil.which("osaurusctl", path=Path(sys.executable).parent)
    result = subprocess.run(
        [program or "osaurusctl", *arguments],
        env=daemons.environment(home),
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
    console.print(Text(result.stdout))


if __name__ == "__main__":
    main()
