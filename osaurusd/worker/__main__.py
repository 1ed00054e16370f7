"""`python -m osaurusd.worker --fd N`: one model, served over the inherited socket N."""

import argparse
import asyncio
import importlib
import os
import signal
import time


def main() -> None:
    """Serve until the daemon is gone, then end at once."""
    parser = argparse.ArgumentParser(prog="python -m osaurusd.worker")
    parser.add_argument("--fd", type=int, required=True, help="the socket that the daemon left open for this process")
    fd = parser.parse_args().fd
    # Ctrl-C reaches the whole process group; when to end is the daemon's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started = time.perf_counter()
    # Here and not above, for how long it takes is told to the daemon: it is most of what a small model's load takes.
    session = importlib.import_module("osaurusd.worker.session")
    asyncio.run(session.serve(fd, time.perf_counter() - started))
    # There is nothing to save, and tearing MLX down beneath its own running thread can hang or crash.
    os._exit(0)


if __name__ == "__main__":
    main()
