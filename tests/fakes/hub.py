"""A stand-in for the Hugging Face hub: the protocol as huggingface_hub speaks it, with faults on command.

`python hub.py ROOT` serves the repos below ROOT and prints its two addresses as JSON, the hub's and the CDN's. A repo
is a folder ORG/NAME with a folder of files for each commit and a `repo.json`: `publish` writes them. Files of the kinds
in `LFS_SUFFIXES` are in LFS, and the hub redirects to signed addresses on the CDN for them.

Under `/_control/` it is told what to do wrong, and tells what it was asked; `Hub` is the client of that.
"""

import contextlib
import hashlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt")
PAGE = 20
SEND_BYTES = 256 * 1024

GATED = {401: "Access to model is restricted", 403: "You are not in the authorized list"}


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def etag(name, content):
    """What the hub calls a file's content, and the client its blob."""
    return sha256(content) if name.endswith(LFS_SUFFIXES) else git_oid(content)


def publish(root, repo, files, *, revision="main", commit=None, **settings):
    """Add a commit to a repo and let `revision` mean it; returns the commit.

    Args:
        root: of the stand-in.
        repo: `ORG/NAME`, made if need be.
        files: contents by name, or paths to take them from.
        revision: a branch.
        commit: 40 hex digits; by default made from the contents.
        settings: of the repo, such as `token` (gated: only with this token), `renamed_to`, `downloads`, `tags`.
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
    about = folder / "repo.json"
    known = json.loads(about.read_text()) if about.exists() else {"refs": {}}
    known |= settings
    known["refs"][revision] = commit
    about.write_text(json.dumps(known))
    return commit


class Store:
    """What lies below the root, and digests of it, which are computed once."""

    def __init__(self, root):
        self._root = Path(root)
        self._digests = {}
        self._lock = threading.Lock()

    def repo(self, name):
        try:
            return json.loads((self._root / name / "repo.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def repos(self):
        return sorted(str(path.parent.relative_to(self._root)) for path in self._root.glob("*/*/repo.json"))

    def commit(self, repo, revision):
        if (self._root / repo / revision).is_dir() and len(revision) == 40:
            return revision
        return self.repo(repo)["refs"].get(revision)

    def names(self, repo, commit):
        folder = self._root / repo / commit
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def path(self, repo, commit, name):
        return self._root / repo / commit / name

    def digest(self, path, name):
        """Size, git's object id or that of the LFS pointer, and the SHA-256 if it is in LFS."""
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        with self._lock:
            if key not in self._digests:
                self._digests[key] = self._read(path, name, status.st_size)
            return self._digests[key]

    def _read(self, path, name, size):
        if not name.endswith(LFS_SUFFIXES):
            return size, git_oid(path.read_bytes()), None
        with path.open("rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n"
        return size, git_oid(pointer.encode()), sha


class State:
    """What both servers share. A fault is a dict: `kind`, `match` (in the file's name), `times`, and its parameters.

    `where` is `api`, `hub`, `cdn`, or left out for whichever of the two sends a file's bytes.
    """

    def __init__(self, store):
        self.store = store
        self.lock = threading.Condition()
        self.faults = []
        self.requests = []
        self.served = 0
        self.rate = None
        self.address_seconds = 3600.0
        self.released = threading.Event()
        self.hub = self.cdn = ""

    def fault(self, name, where):
        """What is to go wrong with this request; what is said of no place is for where the bytes come from."""
        with self.lock:
            for fault in self.faults:
                if fault["match"] in name and fault.get("where", "bytes") in where and fault["times"] != 0:
                    fault["times"] -= 1
                    return fault
        return {}

    def sent(self, record, count):
        with self.lock:
            self.served += count
            record["sent"] += count
            self.lock.notify_all()


class Handler(BaseHTTPRequestHandler):
    """Both servers; `where` is `hub` or `cdn`."""

    protocol_version = "HTTP/1.1"
    state: State
    where: str

    def setup(self):
        super().setup()
        # What the client has not taken must not count for much as sent.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self.record = {}
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        self._json(200, control(self.state, self.path, body))

    def _answer(self):
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.record = {
            "method": self.command,
            "where": self.where,
            "path": url.path,
            "range": self.headers.get("Range"),
            "authorization": self.headers.get("Authorization"),
            "sent": 0,
        }
        with self.state.lock:
            self.state.requests.append(self.record)
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._cdn(parts) if self.where == "cdn" else self._hub(parts)

    def _hub(self, parts):
        match parts:
            case ["api", "models"]:
                self._search()
            case ["api", "models", org, name]:
                self._repo(f"{org}/{name}", lambda repo: self._info(repo, "main"))
            case ["api", "models", org, name, "revision", revision]:
                self._repo(f"{org}/{name}", lambda repo: self._info(repo, revision))
            case ["api", "models", org, name, "tree", revision]:
                self._repo(f"{org}/{name}", lambda repo: self._tree(repo, revision))
            case [org, name, "resolve", revision, *rest]:
                self._repo(f"{org}/{name}", lambda repo: self._resolve(repo, revision, "/".join(rest)))
            case _:
                self._error(404, None, "Not found")

    def _repo(self, repo, answer):
        """Answer for a repo that exists and that the caller may see."""
        about = self.state.store.repo(repo)
        if about is None:
            # The hub does not tell strangers what exists.
            self._error(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "Repository not found")
        elif renamed := about.get("renamed_to"):
            self._empty(307, {"Location": self.path.replace(quote(repo), renamed, 1)})
        elif "token" in about and self.headers.get("Authorization") != f"Bearer {about['token']}":
            status = 403 if self.headers.get("Authorization") else 401
            self._error(status, "GatedRepo", GATED[status])
        elif "/api/" in self.path and (fault := self.state.fault(self.path, ("api",))):
            self._error(fault["status"], None, "a fault on command")
        else:
            answer(repo)

    def _commit(self, repo, revision):
        commit = self.state.store.commit(repo, revision)
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _info(self, repo, revision):
        if commit := self._commit(repo, revision):
            self._json(200, self._model(repo, commit))

    def _model(self, repo, commit):
        about = self.state.store.repo(repo)
        return {
            "_id": hashlib.sha1(repo.encode()).hexdigest()[:24],
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "private": False,
            "gated": "manual" if "token" in about else False,
            "downloads": about.get("downloads", 0),
            "tags": about.get("tags", ["mlx"]),
            "siblings": [{"rfilename": name} for name in self.state.store.names(repo, commit)],
            **({"safetensors": about["safetensors"]} if "safetensors" in about else {}),
        }

    def _tree(self, repo, revision):
        if not (commit := self._commit(repo, revision)):
            return
        names = self.state.store.names(repo, commit)
        begin = int(self.query.get("cursor", 0))
        entries = [self._entry(repo, commit, name) for name in names[begin : begin + PAGE]]
        headers = {}
        if begin + PAGE < len(names):
            more = f"{self.state.hub}/api/models/{repo}/tree/{revision}?recursive=true&cursor={begin + PAGE}"
            headers = {"Link": f'<{more}>; rel="next"'}
        self._json(200, entries, headers)

    def _entry(self, repo, commit, name):
        size, oid, sha = self.state.store.digest(self.state.store.path(repo, commit, name), name)
        entry = {"type": "file", "path": name, "size": size, "oid": oid}
        if sha:
            entry["lfs"] = {"oid": sha, "size": size, "pointerSize": 130}
        return entry

    def _search(self):
        words = self.query.get("search", "").lower()
        author = self.query.get("author")
        models = []
        for repo in self.state.store.repos():
            model = self._model(repo, self.state.store.repo(repo)["refs"]["main"])
            if words in repo.lower() and author in (None, repo.split("/")[0]) and self.query["filter"] in model["tags"]:
                models.append(model)
        models.sort(key=lambda model: -model["downloads"])
        self._json(200, models[: int(self.query.get("limit", 1000))])

    def _resolve(self, repo, revision, name):
        if not (commit := self._commit(repo, revision)):
            return
        path = self.state.store.path(repo, commit, name)
        if not path.is_file():
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        size, oid, sha = self.state.store.digest(path, name)
        headers = {"X-Repo-Commit": commit}
        if sha is None:
            self._file(path, name, oid, headers)
            return
        if fault := self.state.fault(name, ("hub",)):
            self._error(fault["status"], None, "a fault on command", fault.get("headers"))
            return
        expires = time.time() + self.state.address_seconds
        address = f"{self.state.cdn}/{quote(repo)}/{commit}/{quote(name)}?sha={sha}&Expires={expires}&Signature=a%2Bb"
        headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(size), "ETag": f'"{oid}"'}
        self._empty(302, {**headers, "Location": address})

    def _cdn(self, parts):
        org, name, commit, *rest = parts
        if "Signature=a%2Bb" not in self.path or time.time() > float(self.query["Expires"]):
            self._error(403, None, "Request has expired")
            return
        file = "/".join(rest)
        self._file(self.state.store.path(f"{org}/{name}", commit, file), file, self.query["sha"], {})

    def _file(self, path, name, tag, headers):
        """A file or the part of it that is asked for, with what is to go wrong."""
        fault = self.state.fault(name, ("bytes", self.where)) if self.command == "GET" else {}
        kind = fault.get("kind")
        size = path.stat().st_size
        if kind == "status":
            self._error(fault["status"], None, "a fault on command", fault.get("headers"))
            return
        if kind == "etag":
            tag = "0" * len(tag)
        shown = size + fault.get("by", 1) if kind == "length" else size
        begin, end = (0, size) if kind == "no_range" else self._range(size)
        headers = {**headers, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if self.headers.get("Range") and kind != "no_range":
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{shown}"
            self._head(206, headers, end - begin)
        else:
            self._head(200, headers, end - begin + shown - size)
        if self.command == "GET":
            self._body(path, begin, end, fault)

    def _range(self, size):
        asked = self.headers.get("Range")
        if asked is None:
            return 0, size
        first, _, last = asked.removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1 if last else size, size)

    def _body(self, path, begin, end, fault):
        kind, after = fault.get("kind"), fault.get("after", 0)
        stop = min(begin + after, end) if kind in ("cut", "reset", "stall") else end
        with path.open("rb") as file:
            if kind == "flip":
                at = begin + min(after, end - begin - 1)
                self._send(file, begin, at)
                self.connection.sendall(bytes([os.pread(file.fileno(), 1, at)[0] ^ 0xFF]))
                begin = at + 1
            self._send(file, begin, stop)
        if kind == "stall":
            self.close_connection = True
            while not self.state.released.wait(0.02) and not select.select([self.connection], [], [], 0)[0]:
                pass
        if kind in ("cut", "reset"):
            self.close_connection = True
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _send(self, file, begin, end):
        while begin < end:
            count = os.sendfile(self.connection.fileno(), file.fileno(), begin, min(end - begin, SEND_BYTES))
            if not count:
                raise ConnectionError("the file became shorter")
            begin += count
            self.state.sent(self.record, count)
            if self.state.rate:
                time.sleep(count / self.state.rate)

    def _json(self, status, value, headers=None):
        content = json.dumps(value).encode()
        self._head(status, {"Content-Type": "application/json", **(headers or {})}, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status, code, message, headers=None):
        extra = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._json(status, {"error": message}, {**extra, **(headers or {})})

    def _empty(self, status, headers):
        self._head(status, headers, 0)

    def _head(self, status, headers, length):
        self.record["status"] = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def control(state, path, body):
    """What is asked under `/_control/`."""
    with state.lock:
        match path.removeprefix("/_control/"):
            case "fault":
                state.faults.append({"times": 1, **body})
            case "reset":
                state.faults, state.requests, state.served, state.rate = [], [], 0, None
                state.released.set()
                state.released = threading.Event()
            case "release":
                state.released.set()
            case "set":
                for name, value in body.items():
                    setattr(state, name, value)
            case "served":
                state.lock.wait_for(lambda: state.served >= body["bytes"], body["timeout"])
            case "requests":
                return {"requests": state.requests, "served": state.served, "faults": state.faults}
    return {"served": state.served}


class Hub:
    """A stand-in that runs in a process of its own, and its remote control."""

    def __init__(self, root):
        self.root = Path(root)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        addresses = json.loads(self._process.stdout.readline())
        self.url, self.cdn = addresses["hub"], addresses["cdn"]

    def publish(self, repo, files, **settings):
        return publish(self.root, repo, files, **settings)

    def fault(self, kind, match="", **parameters):
        """Have the next request for a file that is called like `match` go wrong; `times` -1 is for good."""
        self._control("fault", kind=kind, match=match, **parameters)

    def set(self, **values):
        """`rate` in bytes a second a connection, `address_seconds` for which signed addresses are good."""
        self._control("set", **values)

    def reset(self):
        """Forget all faults, requests and settings."""
        self._control("reset")

    def release(self):
        """End all stalls."""
        self._control("release")

    def wait_served(self, count, timeout=20):
        """Wait until so many bytes of files have been sent; returns how many were."""
        served = self._control("served", bytes=count, timeout=timeout)["served"]
        assert served >= count, f"{served} of {count} bytes were asked for within {timeout} s"
        return served

    @property
    def served(self):
        return self._control("requests")["served"]

    @property
    def pending(self):
        """Faults that nothing has met yet."""
        return [fault for fault in self._control("requests")["faults"] if fault["times"] > 0]

    def requests(self, match=""):
        """The requests so far for paths that have `match` in them."""
        return [request for request in self._control("requests")["requests"] if match in request["path"]]

    def close(self):
        # The process ends with its standard input.
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _control(self, verb, **body):
        request = urllib.request.Request(f"{self.url}/_control/{verb}", json.dumps(body).encode(), method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=90) as answer:
            return json.load(answer)


@contextlib.contextmanager
def serving(root, repos):
    """The address of a stand-in that has these repos: by repo, by commit, `main` being the last, by name, contents."""
    for repo, commits in repos.items():
        for commit, files in commits.items():
            publish(root, repo, files, commit=commit)
    with running(root) as hub:
        yield hub.url


@contextlib.contextmanager
def running(root):
    """A stand-in that serves the repos below `root` while the block runs."""
    hub = Hub(root)
    try:
        yield hub
    finally:
        hub.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def main(root):
    state = State(Store(root))
    servers = {}
    for where in ("hub", "cdn"):
        handler = type(where.title(), (Handler,), {"state": state, "where": where})
        servers[where] = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=servers[where].serve_forever, daemon=True).start()
    state.hub = f"http://127.0.0.1:{servers['hub'].server_port}"
    state.cdn = f"http://localhost:{servers['cdn'].server_port}"
    print(json.dumps({"hub": state.hub, "cdn": state.cdn}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
