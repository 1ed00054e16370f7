"""Deletes copies of a cache, the n-th killed (-9) before the n-th change it makes to the disk, until one finishes.

`python interrupt.py CACHE REPO OUT` leaves the copies in OUT/0, OUT/1 … A process per step, forked from one that has
loaded all there is to load.
"""

import itertools
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import huggingface_hub

from osaurusd.models.worker import __main__ as fetch

CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir"}


def delete(cache, repo, step):
    """Deletes, but not beyond `step` changes; never returns."""
    left = itertools.count(step, -1)

    def count(event, arguments):
        if event in CHANGES and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _, theirs = socket.socketpair()
    sys.addaudithook(count)
    os._exit(fetch.main(["--fd", str(theirs.detach()), "delete", "--cache", str(cache), "--repo", repo]))


def main(cache, repo, out):
    assert huggingface_hub.scan_cache_dir(cache).repos
    for step in itertools.count():
        copy = shutil.copytree(cache, Path(out) / str(step), symlinks=True)
        pid = os.fork()
        if pid == 0:
            delete(copy, repo, step)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
