"""A stand-in for the Hugging Face hub on the loopback, as much of it as `snapshot_download` asks for."""

import contextlib
import hashlib
import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LFS_SUFFIXES = (".safetensors",)


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def etag(name, content):
    """What the hub calls a file's content, and the client its blob."""
    return sha256(content) if name.endswith(LFS_SUFFIXES) else git_oid(content)


class Hub:
    """Repos, each with commits in the order they were made; `main` is the last of them.

    Args:
        repos: by repo, by commit, by file name: the content.
    """

    def __init__(self, repos):
        self._repos = repos

    def answer(self, path):
        """Status, headers and content for a path."""
        match path.partition("?")[0].strip("/").split("/"):
            case ["api", "models", org, name, "revision", revision]:
                return self._info(f"{org}/{name}", revision)
            case ["api", "models", org, name, "tree", revision]:
                return self._tree(f"{org}/{name}", revision)
            case [org, name, "resolve", revision, *parts]:
                return self._file(f"{org}/{name}", revision, "/".join(parts))
        return HTTPStatus.NOT_FOUND, {}, b""

    def _commit(self, repo, revision):
        return list(self._repos[repo])[-1] if revision == "main" else revision

    def _info(self, repo, revision):
        commit = self._commit(repo, revision)
        siblings = [{"rfilename": name} for name in self._repos[repo][commit]]
        return _json({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": [], "private": False})

    def _tree(self, repo, revision):
        files = self._repos[repo][self._commit(repo, revision)]
        return _json([_entry(name, content) for name, content in files.items()])

    def _file(self, repo, revision, name):
        commit = self._commit(repo, revision)
        content = self._repos[repo][commit].get(name)
        if content is None:
            return HTTPStatus.NOT_FOUND, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(name, content)}"'}
        if name.endswith(LFS_SUFFIXES):
            headers |= {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        return HTTPStatus.OK, headers, content


def _entry(name, content):
    entry = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
    if name.endswith(LFS_SUFFIXES):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n"
        entry["oid"] = git_oid(pointer.encode())
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": len(pointer)}
    return entry


def _json(document):
    return HTTPStatus.OK, {"Content-Type": "application/json"}, json.dumps(document).encode()


@contextlib.contextmanager
def serving(repos):
    """The URL of a hub that has these repos."""
    hub = Hub(repos)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):  # the name is the standard library's
            self._reply(with_body=False)

        def do_GET(self):
            self._reply(with_body=True)

        def _reply(self, with_body):
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
