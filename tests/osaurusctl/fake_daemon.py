"""A fake daemon with canned replies: HTTP on a Unix socket and the lock file, but no models."""

import fcntl
import http.server
import json
import os
import select
import socketserver
import sys
import threading
import time
from collections import deque
from pathlib import Path

import msgspec

from osaurusd import __version__
from osaurusd.wire.admin import (
    API_HEADER,
    API_VERSION,
    VERSION_HEADER,
    Alias,
    Availability,
    DaemonStatus,
    FileInfo,
    ModelDetails,
    ModelInfo,
    PruneReply,
    ReloadReply,
    Removed,
    RemoveReply,
    Route,
    ShutdownReply,
    UnloadReply,
    WorkerInfo,
    WorkerState,
)
from osaurusd.wire.drain import DrainStatus
from osaurusd.wire.errors import ErrorBody, ErrorEnvelope
from osaurusd.wire.imports import ImportRoute
from osaurusd.wire.keys import KeyRoute
from osaurusd.wire.pulls import PullRoute
from osaurusd.wire.residency import PinReply

HOLD = object()
"""In a stream: wait until the client disconnects."""

CUT = object()
"""In a stream: close the connection without ending the response."""


class RecordedRequest(msgspec.Struct):
    method: str
    path: str
    headers: dict[str, str]
    body: object


class FakeDaemon:
    """Attributes determine the replies; `requests` records the requests."""

    HOLD, CUT = HOLD, CUT

    def __init__(self, home):
        self.home = Path(home)
        self.version = __version__
        self.api = str(API_VERSION)
        self.pid = os.getpid()
        self.models = [model("llama-3.2-3b-instruct")]
        self.workers = []
        self.default_model = None
        self.faults = []
        self.health = deque()
        self.errors = {}
        self.missing = set()
        self.raw = {}
        self.status_override = {}
        self.import_events = []
        self.checked = []
        self.verify_events = []
        self.pulls = []
        self.unknown_pulls = set()
        self.pull_events = []
        self.search_results = []
        self.details = {}
        self.aliases = {}
        self.pins = []
        self.draining = False
        self.keeps_draining = True
        self.requests_in_flight = deque()
        self.keys = []
        self.events = []
        self.leftovers = []
        self.reloaded = ReloadReply(applied=[], needs_restart=[])
        self.answers = deque()
        self.reject_every_other_version = True
        self.release_lock_on_shutdown = True
        self.requests = []
        self.client_disconnected = threading.Event()
        self.stopping = threading.Event()
        self.closing = threading.Event()
        self.chat_started = threading.Event()
        # Clear it to let requests wait.
        self.answering = threading.Event()
        self.answering.set()

    def start(self):
        run = self.home / "run"
        run.mkdir(parents=True, mode=0o700, exist_ok=True)
        self.lock = (run / "admin.sock.lock").open("w+", encoding="utf-8")
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.lock.write(f"{self.pid}\n")
        self.lock.flush()
        self.server = _Server(str(run / "admin.sock"), _Handler)
        self.server.fake = self
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def release_lock(self):
        """Release the lock, as the exit of the process would."""
        self.lock.close()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        (self.home / "run" / "admin.sock").unlink(missing_ok=True)
        self.release_lock()

    def fail(self, path, code, message, status=400, param=None):
        self.errors[path] = (status, ErrorBody(message=message, type="invalid_request_error", code=code, param=param))

    def drain(self):
        """Return the status of draining, with the next of the scripted numbers of requests."""
        requests = self.requests_in_flight.popleft() if self.requests_in_flight else 0
        return DrainStatus(draining=self.draining, since=time.time() if self.draining else None, requests=requests)

    def bodies(self, path):
        return [request.body for request in self.requests if request.path == path]

    def status(self):
        status = DaemonStatus(
            version=self.version,
            api_version=int(self.api),
            pid=self.pid,
            instance="0123",
            uptime_seconds=192.4,
            endpoints=["http://127.0.0.1:8080", "http://[::1]:8080"],
            socket=str(self.home / "run" / "admin.sock"),
            config_file=str(self.home / "config.toml"),
            log_file=str(self.home / "logs" / "osaurusd.log"),
            models_dir=str(self.home / "models"),
            default_model=self.default_model,
            models_available=len(self.models),
            workers=self.workers,
            memory_budget_bytes=11 * 10**9,
            memory_used_bytes=4_200_000_000,
            faults=self.faults,
            drain=DrainStatus(draining=self.draining, since=time.time() if self.draining else None),
        )
        return {**msgspec.to_builtins(status), **self.status_override}


def model(name, **fields):
    return ModelInfo(
        **{
            "name": name,
            "repo": f"mlx-community/{name}-4bit",
            "path": f"/models/{name}",
            "source": "hub",
            "state": Availability.AVAILABLE,
            "bytes": 1_807_496_278,
            "created": 1738193123,
            "quantization": "4-bit",
            "context_length": 131072,
            **fields,
        }
    )


def details(name, model_fields=None, **fields):
    defaults = {
        "commit": "7f0dc925e0d0afb0322d96f9255cfddf2ba5636e",
        "license": "llama3.2",
        "files": [FileInfo(name="config.json", bytes=1100), FileInfo(name="model.safetensors", bytes=1_807_496_278)],
        "needs_bytes": 2_000_000_000,
        "weights_bytes": 1_807_496_278,
    }
    return ModelDetails(model=model(name, **(model_fields or {})), **{**defaults, **fields})


def worker(name, **fields):
    defaults = {
        "state": WorkerState.READY,
        "pid": 4242,
        "device": "gpu",
        "memory_bytes": 2_100_000_000,
        "needs_bytes": 2_000_000_000,
    }
    return WorkerInfo(model=name, **{**defaults, **fields})


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False
    request_queue_size = 32
    fake: "FakeDaemon"

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def do_PATCH(self):
        self.answer()

    @property
    def fake(self):
        assert isinstance(self.server, _Server)
        return self.server.fake

    def answer(self):
        self.close_connection = True
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(content) if content else None
        self.fake.requests.append(RecordedRequest(self.command, self.path, dict(self.headers), body))
        self.fake.answering.wait(30)
        if (raw := self.fake.raw.get(self.path)) is not None:
            self.wfile.write(raw)
        elif self.is_rejected_version():
            self.error(412, ErrorBody(message="another API version", type="x", code="version_mismatch"))
        elif self.path in self.fake.errors:
            self.error(*self.fake.errors[self.path])
        elif missing := self.missing(body):
            self.error(404, ErrorBody(message=f"no model `{missing[0]}`", type="x", code="model_not_found"))
        elif self.command == "GET":
            self.get()
        elif self.command == "PATCH":
            self.error(405, ErrorBody(message="not allowed", type="x", code="method_not_allowed"))
        else:
            self.post(body)

    def missing(self, body):
        body = {} if self.path == PullRoute.PULLS else body or {}
        return [name for name in (body.get("model"), *body.get("models", [])) if name in self.fake.missing]

    def is_rejected_version(self):
        other_version = self.path.startswith("/v0") and self.headers.get(API_HEADER) != self.fake.api
        exempt = self.path in (Route.STATUS, Route.SHUTDOWN) and not self.fake.reject_every_other_version
        return other_version and not exempt

    def get(self):
        fake = self.fake
        match self.path:
            case "/health":
                self.reply(fake.health.popleft() if fake.health else 200, {})
            case Route.STATUS:
                self.reply(200, fake.status())
            case Route.DRAIN:
                self.reply(200, fake.drain())
            case Route.EVENTS | "/v0/events?follow=1":
                self.stream(fake.events, lambda event: msgspec.json.encode(event) + b"\n")
            case _:
                self.list()

    def list(self):
        fake = self.fake
        match self.path:
            case Route.MODELS:
                self.reply(200, fake.models)
            case Route.WORKERS:
                self.reply(200, fake.workers)
            case Route.PINS:
                self.pinned()
            case PullRoute.PULLS:
                self.reply(200, fake.pulls)
            case KeyRoute.KEYS:
                self.reply(200, fake.keys)
            case Route.ALIASES:
                self.reply(200, [Alias(alias=alias, target=target) for alias, target in fake.aliases.items()])

    def post(self, body):
        fake = self.fake
        match self.path:
            case Route.LOAD:
                self.reply(200, worker(body["model"], load_seconds=3.21))
            case Route.DRAIN:
                fake.draining = body["draining"] and fake.keeps_draining
                self.reply(200, fake.drain())
            case Route.UNLOAD:
                loaded = [w.model for w in fake.workers]
                self.reply(200, UnloadReply(unloaded=[n for n in loaded if body["model"] in (None, n)]))
            case Route.SHUTDOWN:
                self.reply(202, ShutdownReply(pid=fake.pid))
                fake.stopping.set()
                if fake.release_lock_on_shutdown:
                    fake.release_lock()
            case ImportRoute.QUANTIZATIONS:
                self.stream(fake.import_events, lambda event: msgspec.json.encode(event) + b"\n")
            case ImportRoute.CHECKS:
                self.reply(200, fake.checked)
            case Route.IMPORTS:
                self.stream(fake.import_events, lambda event: msgspec.json.encode(event) + b"\n")
            case "/v1/chat/completions":
                self.chat(body)
            case _:
                self.manage(body)

    def manage(self, body):
        fake = self.fake
        match self.path:
            case Route.DETAILS:
                self.reply(200, fake.details[body["model"]])
            case Route.REMOVE:
                self.remove(body)
            case Route.VERIFY:
                self.stream(fake.verify_events, lambda event: msgspec.json.encode(event) + b"\n")
            case Route.ALIASES:
                self.alias(body["alias"], body["target"])
            case Route.PINS:
                fake.pins = [name for name in fake.pins if name != body["model"]]
                fake.pins += [body["model"]] if body["pinned"] else []
                self.pinned()
            case Route.PRUNE:
                leftovers = fake.leftovers
                if not body["dry_run"]:
                    fake.leftovers = []
                self.reply(200, PruneReply(leftovers=leftovers))
            case Route.RELOAD:
                self.reply(200, fake.reloaded)
            case _:
                self.download(body)

    def download(self, body):
        fake = self.fake
        match self.path:
            case PullRoute.PULLS if body["model"] in fake.unknown_pulls:
                message = f"no model is known by the name `{body['model']}`"
                self.error(404, ErrorBody(message=message, type="x", code="model_not_found"))
            case PullRoute.PULLS:
                self.reply(202, fake.pulls[0])
            case PullRoute.WATCH:
                self.stream(fake.pull_events, lambda event: msgspec.json.encode(event) + b"\n")
            case PullRoute.CANCEL:
                self.reply(200, fake.pulls[0])
            case PullRoute.SEARCH:
                self.reply(200, fake.search_results)

    def pinned(self):
        pins = self.fake.pins
        self.reply(200, PinReply(pinned=pins, needs_bytes=len(pins) * 10**9, budget_bytes=11 * 10**9))

    def remove(self, body):
        removed_models = [model for model in self.fake.models if model.name in body["models"]]
        removed = [Removed(name=model.name, repo=model.repo, bytes=model.bytes) for model in removed_models]
        if not body["dry_run"]:
            self.fake.models = [model for model in self.fake.models if model not in removed_models]
        self.reply(200, RemoveReply(removed=removed))

    def alias(self, alias, target):
        if target is None:
            target = self.fake.aliases.pop(alias)
        else:
            self.fake.aliases[alias] = target
        self.reply(200, Alias(alias=alias, target=target))

    def chat(self, body):
        self.fake.chat_started.set()
        tokens = self.fake.answers.popleft() if self.fake.answers else ["Hello", " there"]
        shown = {"model": body["model"], "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1}

        def chunk(token):
            if isinstance(token, ErrorBody):
                return _event(ErrorEnvelope(token))
            if isinstance(token, dict) and "prompt_progress" in token:
                return _event({**shown, "choices": [], **token})
            delta = token if isinstance(token, dict) else {"content": token}
            return _event({**shown, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

        if self.stream(tokens, chunk, end=False):
            finish = "length" if body.get("max_tokens") == 2 else "stop"
            self.chunk(_event({**shown, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}))
            if body.get("stream_options", {}).get("include_usage"):
                usage = {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
                self.chunk(_event({**shown, "choices": [], "usage": usage}))
            self.chunk(b": keep alive\n\ndata: [DONE]\n\n")
            self.chunk(b"")

    def stream(self, items, encode, *, end=True):
        """Send the items; return whether the stream is complete."""
        try:
            self.head(200, {"Transfer-Encoding": "chunked"})
        except ConnectionError:
            # The client has left before the response began.
            self.fake.client_disconnected.set()
            return False
        for item in items:
            if item is HOLD:
                self.wait_for_disconnect()
                return False
            if item is CUT:
                return False
            self.chunk(encode(item))
            if isinstance(item, ErrorBody):
                self.chunk(b"")
                return False
        if end:
            self.chunk(b"")
        return True

    def wait_for_disconnect(self):
        while not self.fake.closing.is_set():
            if select.select([self.connection], [], [], 0.05)[0]:
                self.fake.client_disconnected.set()
                return

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def error(self, status, body):
        self.reply(status, ErrorEnvelope(body))

    def reply(self, status, value):
        content = msgspec.json.encode(value)
        self.head(status, {"Content-Length": str(len(content)), "Content-Type": "application/json"})
        self.wfile.write(content)

    def head(self, status, headers):
        self.send_response(status)
        for name, value in {**headers, API_HEADER: self.fake.api, VERSION_HEADER: self.fake.version}.items():
            self.send_header(name, value)
        self.end_headers()


def _event(value):
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
