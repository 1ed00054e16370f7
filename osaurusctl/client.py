"""The daemon's client: HTTP over its Unix socket, one connection a call."""

import contextlib
import http.client
import socket
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from osaurusctl.errors import BrokenReply, CliError, DaemonNotRunning, VersionMismatch, from_body
from osaurusd import __version__
from osaurusd.wire import paths
from osaurusd.wire.admin import (
    API_HEADER,
    API_VERSION,
    SOCKET_HOST,
    VERSION_HEADER,
    Alias,
    AliasRequest,
    DaemonStatus,
    DetailsRequest,
    ImportEvent,
    ImportRequest,
    LoadRequest,
    ModelDetails,
    ModelInfo,
    PruneReply,
    PruneRequest,
    ReloadReply,
    RemoveReply,
    RemoveRequest,
    Route,
    ShutdownReply,
    UnloadReply,
    UnloadRequest,
    VerifyEvent,
    VerifyRequest,
    WorkerInfo,
)
from osaurusd.wire.diagnosis import Diagnosis
from osaurusd.wire.errors import ErrorEnvelope
from osaurusd.wire.keys import KeyInfo, KeyRequest, KeyRoute, NewKey, RevokeRequest
from osaurusd.wire.pulls import (
    FoundModel,
    PullCancel,
    PullEvent,
    PullInfo,
    PullRequest,
    PullRoute,
    PullWatch,
    SearchRequest,
)
from osaurusd.wire.residency import Event, PinReply, PinRequest

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""For calls that a healthy daemon answers at once."""

_BLANK_STATUS = DaemonStatus(
    version="unknown",
    api_version=0,
    pid=0,
    instance="",
    uptime_seconds=0,
    endpoints=[],
    socket="",
    config_file="",
    log_file="",
    models_dir="",
    default_model=None,
    models_available=0,
    workers=[],
)


class _UnixConnection(http.client.HTTPConnection):
    """`http.client` on a Unix socket; the host is what goes into the `Host` header."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__(SOCKET_HOST, timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class _Reply:
    """A whole reply, or the head of one that streams."""

    status: int
    api: str | None
    version: str
    body: bytes = b""

    def foreign(self) -> bool:
        """Whether it comes from a daemon of another API version."""
        return self.api is not None and self.api != str(API_VERSION)

    def check(self, *, any_version: bool = False) -> None:
        if self.foreign() and not any_version:
            raise VersionMismatch(__version__, self.version)
        if self.status >= 400:
            raise self._error()

    def _error(self) -> CliError:
        try:
            return from_body(msgspec.json.decode(self.body, type=ErrorEnvelope).error)
        except msgspec.DecodeError:
            return BrokenReply(f"HTTP status {self.status} without an error in its body")


class Client:
    """Calls on the daemon behind one socket. Every failure is a `CliError`."""

    def __init__(self, path: Path, *, patience: float = PATIENCE_SECONDS) -> None:
        self._path = path
        self._patience = patience

    def status(self, *, any_version: bool = False) -> DaemonStatus:
        """The daemon's status; with `any_version`, as much as can be read of that of another API version."""
        reply = self._request("GET", Route.STATUS, timeout=self._patience, any_version=any_version)
        return _salvage(reply.body) if reply.foreign() else _decode(reply.body, DaemonStatus)

    def models(self) -> list[ModelInfo]:
        return _decode(self._request("GET", Route.MODELS, timeout=self._patience).body, list[ModelInfo])

    def details(self, model: str) -> ModelDetails:
        request = DetailsRequest(model=model)
        return _decode(self._request("POST", Route.DETAILS, request, timeout=self._patience).body, ModelDetails)

    def diagnosis(self) -> Diagnosis:
        """What the daemon itself sees of its surroundings."""
        return _decode(self._request("GET", Route.DIAGNOSIS, timeout=self._patience).body, Diagnosis)

    def workers(self) -> list[WorkerInfo]:
        return _decode(self._request("GET", Route.WORKERS, timeout=self._patience).body, list[WorkerInfo])

    def load(self, model: str, keep_alive_seconds: float | None = None) -> WorkerInfo:
        """Load `model` and wait until it is ready, however long that takes; it stays this long once idle."""
        request = LoadRequest(model=model, keep_alive_seconds=keep_alive_seconds)
        return _decode(self._request("POST", Route.LOAD, request).body, WorkerInfo)

    def unload(self, model: str | None, *, force: bool) -> UnloadReply:
        """Unload `model`, or all."""
        return _decode(self._request("POST", Route.UNLOAD, UnloadRequest(model=model, force=force)).body, UnloadReply)

    def pins(self) -> PinReply:
        return _decode(self._request("GET", Route.PINS, timeout=self._patience).body, PinReply)

    def pin(self, model: str, *, pinned: bool) -> PinReply:
        """Pin `model`, or let it go; tells which are pinned then. It is loaded in the background."""
        request = PinRequest(model=model, pinned=pinned)
        return _decode(self._request("POST", Route.PINS, request, timeout=self._patience).body, PinReply)

    def events(self, *, follow: bool) -> Generator[Event, None, None]:
        """What has happened to models lately; with `follow`, also what happens until the generator is closed."""
        return self._events(f"{Route.EVENTS}{'?follow=1' if follow else ''}", None, Event, method="GET")

    def remove(self, models: Sequence[str], *, force: bool, dry_run: bool = False) -> RemoveReply:
        """Remove `models` from disk and tell what came free; with `dry_run`, what would."""
        request = RemoveRequest(models=list(models), force=force, dry_run=dry_run)
        return _decode(self._request("POST", Route.REMOVE, request).body, RemoveReply)

    def prune(self, *, dry_run: bool = False) -> PruneReply:
        """Remove the daemon's leftovers and tell which there were; with `dry_run`, which there are."""
        return _decode(self._request("POST", Route.PRUNE, PruneRequest(dry_run=dry_run)).body, PruneReply)

    def aliases(self) -> list[Alias]:
        return _decode(self._request("GET", Route.ALIASES, timeout=self._patience).body, list[Alias])

    def set_alias(self, alias: str, target: str | None) -> Alias:
        """Let `alias` mean `target` too; with None, take it away and tell what it was."""
        request = AliasRequest(alias=alias, target=target)
        return _decode(self._request("POST", Route.ALIASES, request, timeout=self._patience).body, Alias)

    def api_keys(self) -> list[KeyInfo]:
        return _decode(self._request("GET", KeyRoute.KEYS, timeout=self._patience).body, list[KeyInfo])

    def create_key(self, name: str | None) -> NewKey:
        """Make an API key; the reply is the only one that has it."""
        request = KeyRequest(name=name)
        return _decode(self._request("POST", KeyRoute.KEYS, request, timeout=self._patience).body, NewKey)

    def revoke_key(self, key_id: str) -> KeyInfo:
        """Have a key refused from now on."""
        request = RevokeRequest(id=key_id)
        return _decode(self._request("POST", KeyRoute.REVOKE, request, timeout=self._patience).body, KeyInfo)

    def reload(self) -> ReloadReply:
        """Let the daemon read its configuration again."""
        return _decode(self._request("POST", Route.RELOAD, {}, timeout=self._patience).body, ReloadReply)

    def shutdown(self) -> ShutdownReply:
        """Ask a daemon of whatever version to stop. It still runs when this returns."""
        reply = self._request("POST", Route.SHUTDOWN, {}, timeout=self._patience, any_version=True)
        return _decode(reply.body, ShutdownReply)

    def healthy(self) -> bool:
        """Whether requests can be served now."""
        try:
            return self._send("GET", "/health", None, timeout=self._patience, api=str(API_VERSION)).status == 200
        except CliError:
            return False

    def import_model(self, request: ImportRequest) -> Generator[ImportEvent, None, None]:
        """Events of an import, as they come; closing the generator cancels it."""
        return self._events(Route.IMPORTS, request, ImportEvent)

    def verify(self, model: str) -> Generator[VerifyEvent, None, None]:
        """Events of a verification, as they come; closing the generator cancels it."""
        return self._events(Route.VERIFY, VerifyRequest(model=model), VerifyEvent)

    def pull(self, model: str, token: str | None) -> PullInfo:
        """Have the daemon download `model`; a pull that runs already is joined."""
        request = PullRequest(model=model, token=token)
        return _decode(self._request("POST", PullRoute.PULLS, request, timeout=self._patience).body, PullInfo)

    def pulls(self) -> list[PullInfo]:
        return _decode(self._request("GET", PullRoute.PULLS, timeout=self._patience).body, list[PullInfo])

    def watch_pulls(self, pulls: Sequence[str]) -> Generator[PullEvent, None, None]:
        """Events of pulls by their ids, as they come; closing the generator leaves them as they are."""
        return self._events(PullRoute.WATCH, PullWatch(pulls=list(pulls)), PullEvent)

    def cancel_pull(self, pull: str) -> PullInfo:
        """End a pull by its id or a name of its model."""
        request = PullCancel(pull=pull)
        return _decode(self._request("POST", PullRoute.CANCEL, request, timeout=self._patience).body, PullInfo)

    def search(self, request: SearchRequest) -> list[FoundModel]:
        """Ask the hub for models; takes as long as the hub does."""
        return _decode(self._request("POST", PullRoute.SEARCH, request).body, list[FoundModel])

    def chat(self, body: dict[str, Any]) -> Generator[bytes, None, None]:
        """The JSON objects of a streamed chat completion; closing the generator cancels it."""
        with contextlib.closing(self._lines("/v1/chat/completions", body)) as lines:
            for line in lines:
                field, _, data = line.partition(b":")
                if field != b"data":
                    continue
                if data.strip() == b"[DONE]":
                    return
                yield data.strip()
        raise BrokenReply("the answer ended before it was complete")

    def _request(
        self, method: str, path: str, body: object = None, *, timeout: float | None = None, any_version: bool = False
    ) -> _Reply:
        reply = self._send(method, path, body, timeout=timeout, api=str(API_VERSION))
        if any_version and reply.status == 412 and reply.api:
            # What any version may ask reads alike in all of them: say that we speak the daemon's.
            reply = self._send(method, path, body, timeout=timeout, api=reply.api)
        reply.check(any_version=any_version)
        return reply

    def _send(self, method: str, path: str, body: object, *, timeout: float | None, api: str) -> _Reply:
        with self._exchange(method, path, body, timeout=timeout, api=api) as response:
            return _head(response, response.read())

    def _events(self, path: str, body: object, kind: Any, method: str = "POST") -> Generator[Any, None, None]:
        with contextlib.closing(self._lines(path, body, method)) as lines:
            for line in lines:
                if line.strip():
                    yield _decode(line, kind)

    def _lines(self, path: str, body: object, method: str = "POST") -> Generator[bytes, None, None]:
        with self._exchange(method, path, body, timeout=None, api=str(API_VERSION)) as response:
            failed = response.status >= 400
            _head(response, response.read() if failed else b"").check()
            while line := response.readline():
                yield line

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, body: object, *, timeout: float | None, api: str
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {API_HEADER: api, "Content-Type": "application/json"}
        content = None if body is None else msgspec.json.encode(body)
        with _explained(self._path), contextlib.closing(_UnixConnection(self._path, timeout)) as connection:
            connection.request(method, path, content, headers)
            with connection.getresponse() as response:
                yield response


def connect() -> Client:
    """A client of this environment's daemon, which may not be running."""
    return Client(paths.resolve().socket)


def _head(response: http.client.HTTPResponse, body: bytes) -> _Reply:
    version = response.getheader(VERSION_HEADER, "of an unknown version")
    return _Reply(response.status, response.getheader(API_HEADER), version, body)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise DaemonNotRunning from error
    except PermissionError as error:
        hint = "run `osaurusctl` as the user who started osaurusd"
        raise CliError(f"no permission to use the socket {path}", hint=hint) from error
    except TimeoutError as error:
        raise BrokenReply("it did not come in time") from error
    except (http.client.HTTPException, ConnectionError) as error:
        raise BrokenReply("the connection ended before it was complete") from error
    except OSError as error:
        raise CliError(f"no connection to osaurusd at {path}: {error.strerror or error}") from error


def _decode(content: bytes, kind: type[T] | Any) -> T:
    try:
        decoded: T = msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise BrokenReply(str(error)) from error
    return decoded


def _salvage(content: bytes) -> DaemonStatus:
    """What can be understood of the status of a daemon of another API version; blanks stand for the rest."""
    raw: dict[str, Any] = _decode(content, dict[str, Any])
    known = {}
    for field in msgspec.structs.fields(DaemonStatus):
        with contextlib.suppress(msgspec.ValidationError, KeyError):
            known[field.name] = msgspec.convert(raw[field.name], field.type)
    return msgspec.structs.replace(_BLANK_STATUS, **known)
