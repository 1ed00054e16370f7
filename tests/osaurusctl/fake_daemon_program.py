"""The fake daemon as a program that tests run as `python -m osaurusd serve`; `FAKE_MODE` selects its behavior."""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fake_daemon import FakeDaemon  # type: ignore[import-not-found]  # the folder is not a package here

HOME = Path(os.environ["OSAURUS_HOME"])


def main():
    record()
    match os.environ.get("FAKE_MODE"):
        case "exit":
            print("config.toml: unknown key `prot`", file=sys.stderr)
            sys.exit(2)
        case "never ready":
            with (HOME / "alive").open("w"):  # The reader of this pipe sees EOF when the process exits.
                signal.pause()
        case mode:
            serve(linger=0.3 if mode == "slow to stop" else 0)


def record():
    """Write how this process was started to a file."""
    started = {
        "argv": sys.argv[1:],
        "pid": os.getpid(),
        "supervised": os.environ.get("OSAURUS_SUPERVISED"),
        "own_session": os.getsid(0) == os.getpid(),
        "stdin_is_null": os.path.samestat(os.fstat(0), Path(os.devnull).stat()),
    }
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / "started.json").write_text(json.dumps(started), encoding="utf-8")


def serve(linger):
    fake = FakeDaemon(HOME)
    fake.health.extend([503, 503])
    fake.release_lock_on_shutdown = False
    fake.start()
    fake.stopping.wait()
    time.sleep(linger)
    fake.close()


if __name__ == "__main__":
    main()
