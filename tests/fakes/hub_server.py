"""A fake Hugging Face Hub that implements huggingface_hub's protocol and can inject faults.

`python hub_server.py ROOT [CERTIFICATE]` serves the repositories below ROOT, over TLS if there is a certificate and its
key, and prints the URLs of the hub and of its CDN as JSON.
Each repository is a folder ORG/NAME with a folder of files for each commit and a `repo.json`; `hub.publish` writes
them. Files with `LFS_SUFFIXES` are LFS files, which the hub redirects to signed URLs of the CDN. Requests below
`/_control/` inject faults and return statistics; `hub.Hub` is the client for them.
"""

import contextlib
import hashlib
import json
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt")
PAGE_SIZE = 20
SEND_BYTES = 256 * 1024
ADDRESS_SECONDS = 3600.0

GATED_MESSAGES = {401: "Access to model is restricted", 403: "You are not in the authorized list"}


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Store:
    """The repositories below a root, with cached digests."""

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
        """Return the size, git's object id (of LFS files that of the pointer), and the SHA-256 of LFS files."""
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        with self._lock:
            if key not in self._digests:
                self._digests[key] = self._compute_digest(path, name, status.st_size)
            return self._digests[key]

    def _compute_digest(self, path, name, size):
        if not name.endswith(LFS_SUFFIXES):
            return size, git_oid(path.read_bytes()), None
        with path.open("rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n"
        return size, git_oid(pointer.encode()), sha


class State:
    """The state that both servers share.

    A fault is a dict with `kind`, `match` (part of the file's name), `times`, parameters of its kind, and optionally
    `where`: `api`, `hub` or `cdn`. Without it, the fault applies to the server that sends the file's content.
    """

    def __init__(self, store):
        self.store = store
        self.lock = threading.Condition()
        self.faults = []
        self.requests = []
        self.served = 0
        self.rate = None
        self.address_seconds = ADDRESS_SECONDS
        self.released = threading.Event()
        self.hub = self.cdn = ""

    def take_fault(self, name, where):
        """Return the fault for a request, or an empty dict."""
        with self.lock:
            for fault in self.faults:
                if fault["match"] in name and fault.get("where", "bytes") in where and fault["times"] != 0:
                    fault["times"] -= 1
                    return fault
        return {}

    def count_sent(self, record, count):
        with self.lock:
            self.served += count
            record["sent"] += count
            self.lock.notify_all()

    def control(self, command, body):
        """Carry out a command of the client."""
        with self.lock:
            match command:
                case "fault":
                    self.faults.append({"times": 1, **body})
                case "reset":
                    self.faults, self.requests, self.served, self.rate = [], [], 0, None
                    self.address_seconds = ADDRESS_SECONDS
                    self.released.set()
                    self.released = threading.Event()
                case "release":
                    self.released.set()
                case "set":
                    for name, value in body.items():
                        setattr(self, name, value)
                case "served":
                    self.lock.wait_for(lambda: self.served >= body["bytes"], body["timeout"])
                case "requests":
                    return {"requests": self.requests, "served": self.served, "faults": self.faults}
        return {"served": self.served}


class Handler(BaseHTTPRequestHandler):
    """Handles the requests of both servers; `where` is `hub` or `cdn`."""

    protocol_version = "HTTP/1.1"
    state: State
    where: str

    def setup(self):
        super().setup()
        # A small buffer: bytes that the client has not received should hardly count as sent.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._handle()

    def do_GET(self):
        self._handle()

    def do_POST(self):
        self.record = {}
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        self._send_json(200, self.state.control(self.path.removeprefix("/_control/"), body))

    def _handle(self):
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
            self._handle_cdn(parts) if self.where == "cdn" else self._handle_hub(parts)

    def _handle_hub(self, parts):
        match parts:
            case ["api", "models"]:
                self._search()
            case ["api", "models", org, name]:
                self._with_repo(f"{org}/{name}", lambda repo: self._send_info(repo, "main"))
            case ["api", "models", org, name, "revision", revision]:
                self._with_repo(f"{org}/{name}", lambda repo: self._send_info(repo, revision))
            case ["api", "models", org, name, "tree", revision]:
                self._with_repo(f"{org}/{name}", lambda repo: self._send_tree(repo, revision))
            case [org, name, "resolve", revision, *rest]:
                self._with_repo(f"{org}/{name}", lambda repo: self._resolve(repo, revision, "/".join(rest)))
            case _:
                self._send_error(404, None, "Not found")

    def _with_repo(self, repo, respond):
        """Call `respond` if the repository exists and the client has access."""
        settings = self.state.store.repo(repo)
        authorization = self.headers.get("Authorization")
        if settings is None:
            # The hub does not reveal to anonymous clients which repositories exist.
            self._send_error(404 if authorization else 401, "RepoNotFound", "Repository not found")
        elif renamed := settings.get("renamed_to"):
            self._send_empty(307, {"Location": self.path.replace(quote(repo), renamed, 1)})
        elif "token" in settings and authorization != f"Bearer {settings['token']}":
            status = 403 if authorization else 401
            self._send_error(status, "GatedRepo", GATED_MESSAGES[status])
        elif "/api/" in self.path and (fault := self.state.take_fault(self.path, ("api",))):
            self._send_error(fault["status"], None, "injected fault")
        else:
            respond(repo)

    def _find_commit(self, repo, revision):
        commit = self.state.store.commit(repo, revision)
        if commit is None:
            self._send_error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _send_info(self, repo, revision):
        if commit := self._find_commit(repo, revision):
            self._send_json(200, self._model_info(repo, commit))

    def _model_info(self, repo, commit):
        settings = self.state.store.repo(repo)
        return {
            "_id": hashlib.sha1(repo.encode()).hexdigest()[:24],
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "private": False,
            "gated": "manual" if "token" in settings else False,
            "downloads": settings.get("downloads", 0),
            "tags": settings.get("tags", ["mlx"]),
            "siblings": [{"rfilename": name} for name in self.state.store.names(repo, commit)],
            **{name: settings[name] for name in ("safetensors", "config", "pipeline_tag") if name in settings},
        }

    def _send_tree(self, repo, revision):
        if not (commit := self._find_commit(repo, revision)):
            return
        names = self.state.store.names(repo, commit)
        begin = int(self.query.get("cursor", 0))
        entries = [self._tree_entry(repo, commit, name) for name in names[begin : begin + PAGE_SIZE]]
        headers = {}
        if begin + PAGE_SIZE < len(names):
            url = f"{self.state.hub}/api/models/{repo}/tree/{revision}?recursive=true&cursor={begin + PAGE_SIZE}"
            headers = {"Link": f'<{url}>; rel="next"'}
        self._send_json(200, entries, headers)

    def _tree_entry(self, repo, commit, name):
        size, oid, sha = self.state.store.digest(self.state.store.path(repo, commit, name), name)
        entry = {"type": "file", "path": name, "size": size, "oid": oid}
        if sha:
            entry["lfs"] = {"oid": sha, "size": size, "pointerSize": 130}
        return entry

    def _search(self):
        query = self.query.get("search", "").lower()
        author = self.query.get("author")
        models = []
        for repo in self.state.store.repos():
            model = self._model_info(repo, self.state.store.repo(repo)["refs"]["main"])
            matches = query in repo.lower() and author in (None, repo.split("/")[0])
            if matches and self.query["filter"] in model["tags"]:
                models.append(model)
        models.sort(key=lambda model: -model["downloads"])
        self._send_json(200, models[: int(self.query.get("limit", 1000))])

    def _resolve(self, repo, revision, name):
        if not (commit := self._find_commit(repo, revision)):
            return
        path = self.state.store.path(repo, commit, name)
        if not path.is_file():
            self._send_error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        size, oid, sha = self.state.store.digest(path, name)
        headers = {"X-Repo-Commit": commit}
        if sha is None:
            self._send_file(path, name, oid, headers)
            return
        if fault := self.state.take_fault(name, ("hub",)):
            self._send_error(fault["status"], None, "injected fault", fault.get("headers"))
            return
        expires = time.time() + self.state.address_seconds
        url = f"{self.state.cdn}/{quote(repo)}/{commit}/{quote(name)}?sha={sha}&Expires={expires}&Signature=a%2Bb"
        headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(size), "ETag": f'"{oid}"'}
        self._send_empty(302, {**headers, "Location": url})

    def _handle_cdn(self, parts):
        org, name, commit, *rest = parts
        if "Signature=a%2Bb" not in self.path or time.time() > float(self.query["Expires"]):
            self._send_error(403, None, "Request has expired")
            return
        file = "/".join(rest)
        self._send_file(self.state.store.path(f"{org}/{name}", commit, file), file, self.query["sha"], {})

    def _send_file(self, path, name, etag, headers):
        """Send a file or the requested range of it, with an injected fault if there is one."""
        fault = self.state.take_fault(name, ("bytes", self.where)) if self.command == "GET" else {}
        kind = fault.get("kind")
        size = path.stat().st_size
        if kind == "status":
            self._send_error(fault["status"], None, "injected fault", fault.get("headers"))
            return
        if kind == "etag":
            etag = "0" * len(etag)
        stated_size = size + fault.get("by", 1) if kind == "length" else size
        begin, end = (0, size) if kind == "no_range" else self._requested_range(size)
        headers = {**headers, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if self.headers.get("Range") and kind != "no_range":
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{stated_size}"
            self._send_head(206, headers, end - begin)
        else:
            self._send_head(200, headers, end - begin + stated_size - size)
        if self.command == "GET":
            self._send_body(path, begin, end, fault)

    def _requested_range(self, size):
        header = self.headers.get("Range")
        if header is None:
            return 0, size
        first, _, last = header.removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1 if last else size, size)

    def _send_body(self, path, begin, end, fault):
        kind, after = fault.get("kind"), fault.get("after", 0)
        stop = min(begin + after, end) if kind in ("cut", "reset", "stall") else end
        with path.open("rb") as file:
            if kind == "flip":
                position = begin + min(after, end - begin - 1)
                self._send_range(file, begin, position)
                self.connection.sendall(bytes([os.pread(file.fileno(), 1, position)[0] ^ 0xFF]))
                begin = position + 1
            self._send_range(file, begin, stop)
        if kind == "stall":
            self.close_connection = True
            released = self.state.released  # `reset` replaces it
            while not released.wait(0.02) and not select.select([self.connection], [], [], 0)[0]:
                pass
        if kind in ("cut", "reset"):
            self.close_connection = True
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _send_range(self, file, begin, end):
        while begin < end:
            size = min(end - begin, SEND_BYTES)
            if isinstance(self.connection, ssl.SSLSocket):
                count = self.connection.send(os.pread(file.fileno(), size, begin))
            else:
                count = os.sendfile(self.connection.fileno(), file.fileno(), begin, size)
            if not count:
                raise ConnectionError("the file was truncated")
            begin += count
            self.state.count_sent(self.record, count)
            if self.state.rate:
                time.sleep(count / self.state.rate)

    def _send_json(self, status, value, headers=None):
        content = json.dumps(value).encode()
        self._send_head(status, {"Content-Type": "application/json", **(headers or {})}, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_error(self, status, code, message, headers=None):
        extra = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._send_json(status, {"error": message}, {**extra, **(headers or {})})

    def _send_empty(self, status, headers):
        self._send_head(status, headers, 0)

    def _send_head(self, status, headers, length):
        self.record["status"] = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def main(root, certificate=None):
    state = State(Store(root))
    scheme = "https" if certificate else "http"
    servers = {}
    for where in ("hub", "cdn"):
        handler = type(where.title(), (Handler,), {"state": state, "where": where})
        servers[where] = Server(("127.0.0.1", 0), handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            servers[where].socket = context.wrap_socket(servers[where].socket, server_side=True)
        threading.Thread(target=servers[where].serve_forever, daemon=True).start()
    state.hub = f"{scheme}://127.0.0.1:{servers['hub'].server_port}"
    state.cdn = f"{scheme}://localhost:{servers['cdn'].server_port}"
    print(json.dumps({"hub": state.hub, "cdn": state.cdn}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
