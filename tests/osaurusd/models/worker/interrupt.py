"""Remove a model from copies of a cache, killing the n-th removal before its n-th change, until one is complete.

`python interrupt.py CACHE REPO OUT` leaves the copies in OUT/0, OUT/1 and so on. Each removal runs in a fork of this
process, which has imported everything already.
"""

import itertools
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import huggingface_hub

from osaurusd.models.worker import __main__ as maintenance

CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir"}


def remove(cache, repo, step):
    """Remove the repository, but kill this process before change `step`; never returns."""
    countdown = itertools.count(step, -1)

    def kill_if_due(event, arguments):
        if event in CHANGES and next(countdown) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _, theirs = socket.socketpair()
    sys.addaudithook(kill_if_due)
    os._exit(maintenance.main(["--fd", str(theirs.detach()), "remove", "--cache", str(cache), "--repo", repo]))


def main(cache, repo, out):
    assert huggingface_hub.scan_cache_dir(cache).repos
    for step in itertools.count():
        copy = shutil.copytree(cache, Path(out) / str(step), symlinks=True)
        pid = os.fork()
        if pid == 0:
            remove(copy, repo, step)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
