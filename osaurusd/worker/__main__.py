"""`python -m osaurusd.worker --fd N`: serves one model over the inherited socket N."""

import argparse
import asyncio
import gc
import importlib
import os
import signal
import time


def main() -> None:
    """Serve until the daemon closes the connection, then exit at once."""
    parser = argparse.ArgumentParser(prog="python -m osaurusd.worker")
    parser.add_argument("--fd", type=int, required=True, help="socket inherited from the daemon")
    fd = parser.parse_args().fd
    # Ctrl-C reaches the whole process group; the daemon decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nearly everything that imports create stays: looking for garbage would only take time.
    gc.disable()
    started = time.perf_counter()
    # Imported here to time it: for a small model, imports take most of the load.
    importlib.import_module("osaurusd.worker.lean_imports")
    session = importlib.import_module("osaurusd.worker.session")
    gc.freeze()
    gc.enable()
    asyncio.run(session.serve(fd, time.perf_counter() - started))
    # There is nothing to save, and freeing MLX while its thread runs can hang or crash.
    os._exit(0)


if __name__ == "__main__":
    main()
