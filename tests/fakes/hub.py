"""The client of the fake Hugging Face Hub in `hub_server.py`: starts it, publishes repositories and injects faults."""

import contextlib
import hashlib
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.fakes import hub_server
from tests.fakes.hub_server import LFS_SUFFIXES, git_oid


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def etag(name, content):
    """Return the hub's ETag of a file, which is also the name of its blob in a cache."""
    return sha256(content) if name.endswith(LFS_SUFFIXES) else git_oid(content)


def publish(root, repo, files, *, revision="main", commit=None, **settings):
    """Add a commit to a repository and make `revision` refer to it; returns the commit.

    Args:
        root: the folder that the server serves.
        repo: `ORG/NAME`, created if necessary.
        files: by name, either the content or a path to link to.
        revision: the name of a branch.
        commit: 40 hex digits; derived from the files by default.
        settings: of the repository: `token` (required for access), `renamed_to`, `downloads`, `tags`, `safetensors`,
            `config`, `pipeline_tag`.
    """
    folder = Path(root) / repo
    names = {
        name: etag(name, content) if isinstance(content, bytes) else str(content) for name, content in files.items()
    }
    commit = commit or hashlib.sha1(json.dumps(names, sort_keys=True).encode()).hexdigest()
    for name, content in files.items():
        path = folder / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.symlink_to(content)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "repo.json"
    document = json.loads(file.read_text()) if file.exists() else {"refs": {}}
    document |= settings
    document["refs"][revision] = commit
    file.write_text(json.dumps(document))
    return commit


class Hub:
    """A fake hub in its own process."""

    def __init__(self, root, certificate=None):
        self.root = Path(root)
        arguments = [str(root), *([str(certificate)] if certificate else [])]
        self._process = subprocess.Popen(
            [sys.executable, hub_server.__file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        urls = json.loads(self._process.stdout.readline())
        self.url, self.cdn = urls["hub"], urls["cdn"]

    def publish(self, repo, files, **settings):
        return publish(self.root, repo, files, **settings)

    def fault(self, kind, match="", **parameters):
        """Inject a fault into the next `times` requests (default 1, -1 for all) for a file whose name has `match`."""
        self._control("fault", kind=kind, match=match, **parameters)

    def set(self, **values):
        """Set `rate` (bytes per second and connection), `address_seconds` (lifetime of signed URLs), or `faults`."""
        self._control("set", **values)

    def reset(self):
        """Discard all faults, requests and settings."""
        self._control("reset")

    def release(self):
        """End all stalls."""
        self._control("release")

    def wait_served(self, count, timeout=60):
        """Wait until `count` bytes of files have been sent; returns how many were."""
        served = self._control("served", bytes=count, timeout=timeout)["served"]
        assert served >= count, f"only {served} of {count} bytes were requested within {timeout} s"
        return served

    @property
    def served(self):
        return self._control("requests")["served"]

    @property
    def pending(self):
        """Faults that no request has triggered yet."""
        return [fault for fault in self._control("requests")["faults"] if fault["times"] > 0]

    def requests(self, match=""):
        """Return all requests whose path contains `match`."""
        return [request for request in self._control("requests")["requests"] if match in request["path"]]

    def close(self):
        # The process exits at the end of its standard input.
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _control(self, command, **body):
        request = urllib.request.Request(f"{self.url}/_control/{command}", json.dumps(body).encode(), method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=90) as response:
            return json.load(response)


@contextlib.contextmanager
def serving(root, repos):
    """Serve repositories; yields the URL. `repos` maps repository to commit to files; the last commit is `main`."""
    for repo, commits in repos.items():
        for commit, files in commits.items():
            publish(root, repo, files, commit=commit)
    with running(root) as hub:
        yield hub.url


@contextlib.contextmanager
def running(root, certificate=None):
    """Serve the repositories below `root`, over TLS if there is a certificate with its key; yields the Hub."""
    hub = Hub(root, certificate)
    try:
        yield hub
    finally:
        hub.close()
