"""The daemon, which receives further signals while it exits."""

import atexit
import os
import signal

from osaurusd import __main__ as daemon

for number in (signal.SIGTERM, signal.SIGINT):
    atexit.register(os.kill, os.getpid(), number)

if __name__ == "__main__":
    daemon.main()
