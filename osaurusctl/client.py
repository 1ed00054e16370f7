"""Client of the daemon's admin and chat APIs: HTTP over the Unix socket, one connection for each call."""

import contextlib
import http.client
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from osaurusctl.errors import CliError, DaemonNotRunning, InvalidReply, VersionMismatch, error_from_body
from osaurusctl.unix_connection import UnixConnection
from osaurusd import __version__
from osaurusd.wire import paths
from osaurusd.wire.admin import (
    API_HEADER,
    API_VERSION,
    VERSION_HEADER,
    Alias,
    AliasRequest,
    DaemonStatus,
    DetailsRequest,
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
from osaurusd.wire.drain import DrainRequest, DrainStatus
from osaurusd.wire.errors import ErrorEnvelope
from osaurusd.wire.hosts import (
    AddHostRequest,
    CheckHostsRequest,
    HostCheck,
    HostInfo,
    HostRoute,
    PairingCode,
    RemoveHostRequest,
)
from osaurusd.wire.imports import CheckedModel, CheckRequest, ImportRoute, ImportStreamEvent, QuantizeEvent
from osaurusd.wire.keys import KeyInfo, KeyRequest, KeyRoute, NewKey, RevokeRequest
from osaurusd.wire.lineage import QuantizeRequest
from osaurusd.wire.placement import SplitSetting
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

TIMEOUT_SECONDS = 30.0
"""For calls that a healthy daemon answers immediately."""

_EMPTY_STATUS = DaemonStatus(
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


@dataclass(frozen=True)
class _Reply:
    """A reply; `body` is empty for a streamed one."""

    status: int
    api: str | None
    version: str
    body: bytes = b""

    @classmethod
    def from_response(cls, response: http.client.HTTPResponse, body: bytes) -> "_Reply":
        version = response.getheader(VERSION_HEADER, "of an unknown version")
        return cls(response.status, response.getheader(API_HEADER), version, body)

    def is_other_version(self) -> bool:
        """Whether the daemon uses another version of the admin API."""
        return self.api is not None and self.api != str(API_VERSION)

    def check(self, *, any_version: bool = False) -> None:
        if self.is_other_version() and not any_version:
            raise VersionMismatch(__version__, self.version)
        if self.status >= 400:
            raise self._error()

    def _error(self) -> CliError:
        try:
            return error_from_body(msgspec.json.decode(self.body, type=ErrorEnvelope).error)
        except msgspec.DecodeError:
            return InvalidReply(f"HTTP status {self.status} without an error object in the body")


class Client:
    """Calls the daemon that listens on the socket `path`. Every failure is raised as a `CliError`.

    Args:
        timeout: seconds to wait for replies that do not depend on how long work takes.
    """

    def __init__(self, path: Path, *, timeout: float | None = None) -> None:
        self._path = path
        self._timeout = TIMEOUT_SECONDS if timeout is None else timeout

    def status(self, *, any_version: bool = False) -> DaemonStatus:
        """Return the daemon's status; with `any_version`, as many fields as another API version shares with ours."""
        reply = self._request("GET", Route.STATUS, timeout=self._timeout, any_version=any_version)
        return _decode_partial_status(reply.body) if reply.is_other_version() else _decode(reply.body, DaemonStatus)

    def is_healthy(self) -> bool:
        """Whether the daemon serves requests now."""
        try:
            return self._send("GET", "/health", None, timeout=self._timeout, api=str(API_VERSION)).status == 200
        except CliError:
            return False

    def has_route(self, path: str) -> bool:
        """Whether the daemon has a client endpoint: any method but its own is then not allowed."""
        return self._send("PATCH", path, {}, timeout=self._timeout, api=str(API_VERSION)).status == 405

    def diagnosis(self) -> Diagnosis:
        return self._get(Route.DIAGNOSIS, Diagnosis)

    def reload(self) -> ReloadReply:
        return self._post(Route.RELOAD, {}, ReloadReply)

    def shutdown(self) -> ShutdownReply:
        """Request a shutdown from a daemon of any version. The daemon is still running when this returns."""
        reply = self._request("POST", Route.SHUTDOWN, {}, timeout=self._timeout, any_version=True)
        return _decode(reply.body, ShutdownReply)

    def drain_status(self) -> DrainStatus:
        return self._get(Route.DRAIN, DrainStatus)

    def set_draining(self, *, draining: bool) -> DrainStatus:
        """Make the daemon reject new requests, or accept them again. Requests in flight continue."""
        return self._post(Route.DRAIN, DrainRequest(draining=draining), DrainStatus)

    def models(self) -> list[ModelInfo]:
        return self._get(Route.MODELS, list[ModelInfo])

    def details(self, model: str) -> ModelDetails:
        return self._post(Route.DETAILS, DetailsRequest(model=model), ModelDetails)

    def aliases(self) -> list[Alias]:
        return self._get(Route.ALIASES, list[Alias])

    def set_alias(self, alias: str, target: str | None) -> Alias:
        """Make `alias` another name of `target`; with None, remove the alias and return it."""
        return self._post(Route.ALIASES, AliasRequest(alias=alias, target=target), Alias)

    def remove(self, models: Sequence[str], *, force: bool, dry_run: bool = False) -> RemoveReply:
        """Delete models from disk; with `dry_run`, only return what would be deleted. Waits without a timeout."""
        request = RemoveRequest(models=list(models), force=force, dry_run=dry_run)
        return self._post(Route.REMOVE, request, RemoveReply, wait=True)

    def prune(self, *, dry_run: bool = False) -> PruneReply:
        """Delete leftovers; with `dry_run`, only return what would be deleted. Waits without a timeout."""
        return self._post(Route.PRUNE, PruneRequest(dry_run=dry_run), PruneReply, wait=True)

    def verify(self, model: str) -> Generator[VerifyEvent, None, None]:
        """Stream the events of a verification. Closing the generator cancels it."""
        return self._events(Route.VERIFY, VerifyRequest(model=model), VerifyEvent)

    def import_model(self, request: ImportRequest) -> Generator[ImportStreamEvent, None, None]:
        """Stream the events of an import. Closing the generator cancels it."""
        return self._events(Route.IMPORTS, request, ImportStreamEvent)

    def check_imports(self, request: CheckRequest) -> list[CheckedModel]:
        """Find out which models can be imported. Waits without a timeout."""
        return self._post(ImportRoute.CHECKS, request, list[CheckedModel], wait=True)

    def quantize(self, request: QuantizeRequest) -> Generator[QuantizeEvent, None, None]:
        """Stream the events of a quantization. Closing the generator cancels it."""
        return self._events(ImportRoute.QUANTIZATIONS, request, QuantizeEvent)

    def search(self, request: SearchRequest) -> list[FoundModel]:
        """Search the hub. Waits without a timeout."""
        return self._post(PullRoute.SEARCH, request, list[FoundModel], wait=True)

    def pull(self, model: str, token: str | None) -> PullInfo:
        """Start the download of `model`, or join the one in progress."""
        return self._post(PullRoute.PULLS, PullRequest(model=model, token=token), PullInfo)

    def pulls(self) -> list[PullInfo]:
        return self._get(PullRoute.PULLS, list[PullInfo])

    def watch_pulls(self, pulls: Sequence[str]) -> Generator[PullEvent, None, None]:
        """Stream the events of downloads, given their ids. Closing the generator does not stop them."""
        return self._events(PullRoute.WATCH, PullWatch(pulls=list(pulls)), PullEvent)

    def cancel_pull(self, pull: str) -> PullInfo:
        """Cancel a download by its id or by any name of its model."""
        return self._post(PullRoute.CANCEL, PullCancel(pull=pull), PullInfo)

    def workers(self) -> list[WorkerInfo]:
        return self._get(Route.WORKERS, list[WorkerInfo])

    def load(
        self,
        model: str,
        keep_alive_seconds: float | None = None,
        hosts: list[str] | None = None,
        split: SplitSetting | None = None,
    ) -> WorkerInfo:
        """Load `model`, on other hosts too if some are named, and wait, without a timeout, until it is ready."""
        request = LoadRequest(model=model, keep_alive_seconds=keep_alive_seconds, hosts=hosts, split=split)
        return self._post(Route.LOAD, request, WorkerInfo, wait=True)

    def unload(self, model: str | None, *, force: bool) -> UnloadReply:
        """Unload `model`, or every model if it is None. Waits without a timeout."""
        return self._post(Route.UNLOAD, UnloadRequest(model=model, force=force), UnloadReply, wait=True)

    def pins(self) -> PinReply:
        return self._get(Route.PINS, PinReply)

    def pin(self, model: str, *, pinned: bool) -> PinReply:
        """Add or remove a pin, and return all pins. The daemon loads a pinned model in the background."""
        return self._post(Route.PINS, PinRequest(model=model, pinned=pinned), PinReply)

    def events(self, *, follow: bool) -> Generator[Event, None, None]:
        """Stream recent events; with `follow`, also new ones until the generator is closed."""
        return self._events(f"{Route.EVENTS}{'?follow=1' if follow else ''}", None, Event, method="GET")

    def api_keys(self) -> list[KeyInfo]:
        return self._get(KeyRoute.KEYS, list[KeyInfo])

    def create_key(self, name: str | None) -> NewKey:
        """Create an API key. Only this reply contains the key itself."""
        return self._post(KeyRoute.KEYS, KeyRequest(name=name), NewKey)

    def revoke_key(self, key_id: str) -> KeyInfo:
        return self._post(KeyRoute.REVOKE, RevokeRequest(id=key_id), KeyInfo)

    def hosts(self) -> list[HostInfo]:
        return self._get(HostRoute.HOSTS, list[HostInfo])

    def offer_pairing_code(self) -> PairingCode:
        return self._post(HostRoute.CODE, {}, PairingCode)

    def add_host(self, request: AddHostRequest) -> HostInfo:
        return self._post(HostRoute.HOSTS, request, HostInfo)

    def remove_host(self, name: str) -> HostInfo:
        return self._post(HostRoute.REMOVE, RemoveHostRequest(name=name), HostInfo)

    def check_hosts(self, name: str | None) -> list[HostCheck]:
        """Check the connection to a host, or to all. Waits without a timeout."""
        return self._post(HostRoute.CHECK, CheckHostsRequest(name=name), list[HostCheck], wait=True)

    def chat(self, body: dict[str, Any]) -> Generator[bytes, None, None]:
        """Stream the JSON chunks of a chat completion. Closing the generator cancels the request."""
        with contextlib.closing(self._lines("/v1/chat/completions", body)) as lines:
            for line in lines:
                field, _, data = line.partition(b":")
                if field != b"data":
                    continue
                if data.strip() == b"[DONE]":
                    return
                yield data.strip()
        raise InvalidReply("the stream ended before the answer was complete")

    def send(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        """Send a request to a client endpoint. Waits without a timeout."""
        return self._post(path, body, kind, wait=True)

    def _get(self, path: str, kind: type[T]) -> T:
        return _decode(self._request("GET", path, timeout=self._timeout).body, kind)

    def _post(self, path: str, body: object, kind: type[T], *, wait: bool = False) -> T:
        timeout = None if wait else self._timeout
        return _decode(self._request("POST", path, body, timeout=timeout).body, kind)

    def _request(
        self, method: str, path: str, body: object = None, *, timeout: float | None, any_version: bool = False
    ) -> _Reply:
        reply = self._send(method, path, body, timeout=timeout, api=str(API_VERSION))
        if any_version and reply.status == 412 and reply.api:
            # Requests with `any_version` are the same in every API version, so repeat this one in the daemon's.
            reply = self._send(method, path, body, timeout=timeout, api=reply.api)
        reply.check(any_version=any_version)
        return reply

    def _send(self, method: str, path: str, body: object, *, timeout: float | None, api: str) -> _Reply:
        with self._exchange(method, path, body, timeout=timeout, api=api) as response:
            return _Reply.from_response(response, response.read())

    def _events(self, path: str, body: object, kind: Any, method: str = "POST") -> Generator[Any, None, None]:
        with contextlib.closing(self._lines(path, body, method)) as lines:
            for line in lines:
                if line.strip():
                    yield _decode(line, kind)

    def _lines(self, path: str, body: object, method: str = "POST") -> Generator[bytes, None, None]:
        with self._exchange(method, path, body, timeout=None, api=str(API_VERSION)) as response:
            failed = response.status >= 400
            _Reply.from_response(response, response.read() if failed else b"").check()
            while line := response.readline():
                yield line

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, body: object, *, timeout: float | None, api: str
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {API_HEADER: api, "Content-Type": "application/json"}
        content = None if body is None else msgspec.json.encode(body)
        with _connection_errors(self._path), contextlib.closing(UnixConnection(self._path, timeout)) as connection:
            connection.request(method, path, content, headers)
            with connection.getresponse() as response:
                yield response


def connect() -> Client:
    """Return a client for the daemon of this environment. The daemon need not be running yet."""
    return Client(paths.resolve().socket)


@contextlib.contextmanager
def _connection_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise DaemonNotRunning from error
    except PermissionError as error:
        hint = "run osaurusctl as the user that runs osaurusd"
        raise CliError(f"permission denied for the socket {path}", hint=hint) from error
    except TimeoutError as error:
        raise InvalidReply("timed out") from error
    except (http.client.HTTPException, ConnectionError) as error:
        raise InvalidReply("the connection was closed before the reply was complete") from error
    except OSError as error:
        raise CliError(f"cannot connect to osaurusd at {path}: {error.strerror or error}") from error


def _decode(content: bytes, kind: type[T] | Any) -> T:
    try:
        decoded: T = msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise InvalidReply(str(error)) from error
    return decoded


def _decode_partial_status(content: bytes) -> DaemonStatus:
    """Decode the status of a daemon with another API version; fields that do not decode stay empty."""
    raw: dict[str, Any] = _decode(content, dict[str, Any])
    fields = {}
    for field in msgspec.structs.fields(DaemonStatus):
        with contextlib.suppress(msgspec.ValidationError, KeyError):
            fields[field.name] = msgspec.convert(raw[field.name], field.type)
    return msgspec.structs.replace(_EMPTY_STATUS, **fields)
