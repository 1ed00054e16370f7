"""What the management page does besides the daemon's own routes: remove models, configuration, logs, diagnosis."""

import asyncio
import contextlib
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

import msgspec
from aiohttp import web

from osaurusctl import config_edit, config_file, log_file, recommended
from osaurusctl.client import Client
from osaurusctl.doctor import checks
from osaurusctl.doctor.check import Verdict
from osaurusctl.errors import CliError, DaemonNotRunning
from osaurusctl.log_file import LEVELS, LogFilter
from osaurusctl.ui.daemon import DaemonProxy, decode
from osaurusctl.ui.errors import RequestError
from osaurusd import config
from osaurusd.wire.admin import JSON_LINES, RemoveRequest, Route
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.paths import Paths

T = TypeVar("T")

DEFAULT_LINES = 200
MAX_LINES = 10_000

_DRAFT = "config.toml"


class RemovalPreview(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Find out what removing `model` would free."""

    model: str


class Removal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remove `model` from disk. `confirm` repeats its name, as evidence that the user agreed."""

    model: str
    confirm: str
    force: bool = False


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Find out whether `value` can be set."""

    key: str
    value: Annotated[str, msgspec.Meta(max_length=10_000)]


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Set `key` to `value`, or remove the key if it is null."""

    key: str
    value: Annotated[str, msgspec.Meta(max_length=10_000)] | None


class LocalApi:
    """Handlers of the routes that the daemon does not have.

    Args:
        paths: where the daemon keeps its files.
        daemon: forwards requests to it.
    """

    def __init__(self, paths: Paths, daemon: DaemonProxy) -> None:
        self._paths = paths
        self._daemon = daemon

    @property
    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/manage/remove/preview", self.preview_removal),
            web.post("/manage/remove", self.remove),
            web.get("/manage/recommended", self.list_recommended),
            web.get("/manage/logs", self.stream_logs),
            web.get("/manage/doctor", self.diagnose),
            web.get("/manage/config", self.show_config),
            web.post("/manage/config", self.change_config),
            web.post("/manage/config/check", self.check_config),
        ]

    async def preview_removal(self, request: web.Request) -> web.Response:
        body = decode(await request.read(), RemovalPreview)
        wanted = RemoveRequest(models=[body.model], force=True, dry_run=True)
        return _json(await self._daemon.send("POST", Route.REMOVE, wanted))

    async def remove(self, request: web.Request) -> web.Response:
        body = decode(await request.read(), Removal)
        if body.confirm != body.model:
            raise RequestError(400, ErrorCode.INVALID_REQUEST, "`confirm` must repeat the name of the model", "confirm")
        wanted = RemoveRequest(models=[body.model], force=body.force)
        return _json(await self._daemon.send("POST", Route.REMOVE, wanted))

    async def list_recommended(self, _: web.Request) -> web.Response:
        budget = await asyncio.to_thread(recommended.memory_budget, Client(self._paths.socket))
        return _json(recommended.recommend((), budget))

    async def diagnose(self, _: web.Request) -> web.Response:
        results = await asyncio.to_thread(lambda: checks.run_checks(checks.collect_context(self._paths)))
        return _json({"ok": all(check.verdict is not Verdict.FAILURE for check in results), "checks": results})

    async def stream_logs(self, request: web.Request) -> web.StreamResponse:
        """Send the last records, and with `?follow=1` also new ones until the page closes the connection."""
        lines, log_filter = _parse_log_query(request)
        response = web.StreamResponse()
        response.content_type = JSON_LINES
        await response.prepare(request)
        stream = await asyncio.to_thread(log_file.open_log, self._paths.log_file)
        with stream or contextlib.nullcontext():
            records = await asyncio.to_thread(log_file.read_last, self._paths.log_file, lines, log_filter, stream)
            await response.write(_encode_lines(records))
            if request.query.get("follow") == "1":
                async for new in self._follow(log_filter, stream):
                    await response.write(_encode_lines(new))
        await response.write_eof()
        return response

    async def show_config(self, _: web.Request) -> web.Response:
        path = self._paths.config_file
        values = {setting.key: setting for setting in await asyncio.to_thread(config_file.list_settings, path)}
        settings = [
            {
                **msgspec.structs.asdict(values[each.key]),
                "default": each.default,
                "unit": each.unit,
                "range": each.range,
                "description": each.description,
                "needs_restart": each.needs_restart,
            }
            for each in config.settings()
        ]
        return _json({"path": str(path), "exists": path.exists(), "settings": settings})

    async def check_config(self, request: web.Request) -> web.Response:
        body = decode(await request.read(), Check)
        value = await asyncio.to_thread(_try_setting, self._paths.config_file, body.key, body.value)
        return _json({"key": body.key, "value": value})

    async def change_config(self, request: web.Request) -> web.Response:
        body = decode(await request.read(), Change)
        path, value = self._paths.config_file, None
        if body.value is None:
            await asyncio.to_thread(config_edit.unset_key, path, body.key)
        else:
            value = await asyncio.to_thread(config_edit.set_key, path, body.key, body.value)
        changes: dict[str, Any] = {"applied": [], "needs_restart": []}
        with contextlib.suppress(DaemonNotRunning):
            changes = await self._daemon.send("POST", Route.RELOAD, {})
        return _json({"key": body.key, "value": value, **changes})

    async def _follow(self, log_filter: LogFilter, stream: TextIO | None) -> AsyncIterator[list[dict[str, Any]]]:
        records = log_file.poll(self._paths.log_file, log_filter, stream)
        while True:
            new = await asyncio.to_thread(_take_available, records)
            if new:
                yield new
            else:
                await asyncio.sleep(log_file.POLL_SECONDS)


def _parse_log_query(request: web.Request) -> tuple[int, LogFilter]:
    lines, level = request.query.get("lines", str(DEFAULT_LINES)), request.query.get("level", "debug")
    if not (lines.isascii() and lines.isdecimal() and len(lines) <= len(str(MAX_LINES)) and int(lines) <= MAX_LINES):
        raise RequestError(400, ErrorCode.INVALID_REQUEST, f"`lines` must be 0 to {MAX_LINES}", "lines")
    if level not in LEVELS:
        raise RequestError(400, ErrorCode.INVALID_REQUEST, f"`level` must be one of {', '.join(LEVELS)}", "level")
    return int(lines), LogFilter(level=level)


def _take_available(records: Iterator[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Return the records that can be read without waiting."""
    available = []
    while (record := next(records)) is not None:
        available.append(record)
    return available


def _try_setting(path: Path, key: str, value: str) -> Any:
    """Return the value that setting a key would have, without changing the file.

    Raises:
        CliError: the value is invalid.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / _DRAFT
        if path.exists():
            shutil.copyfile(path, draft)
        try:
            return config_edit.set_key(draft, key, value)
        except CliError as error:
            raise config_file.config_error(str(error).replace(str(draft), str(path)), error.body.param) from error


def _encode_lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(msgspec.json.encode(record) + b"\n" for record in records)


def _json(value: object) -> web.Response:
    return web.Response(body=_encode(value), content_type="application/json")


_encode: Callable[[object], bytes] = functools.partial(msgspec.json.encode, enc_hook=str)
