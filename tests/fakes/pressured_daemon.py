"""The daemon, on a system whose memory pressure is the number in the file `pressure` of the home directory."""

import os
from pathlib import Path

from osaurusd.platform import memory

LEVEL = Path(os.environ["OSAURUS_HOME"]) / "pressure"

# Set before the daemon's modules are imported, which refer to the function.
memory.pressure_level = lambda: memory.PressureLevel(int(LEVEL.read_text()))

# isort: split
from osaurusd import __main__ as daemon  # noqa: E402
from osaurusd.pool import pressure  # noqa: E402

pressure.POLL_SECONDS = 0.05

if __name__ == "__main__":
    daemon.main()
