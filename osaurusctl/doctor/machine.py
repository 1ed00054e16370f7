"""Checks of the machine: disk, memory, model folders, libraries, hub, crash output."""

import http.client
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from osaurusctl import stores
from osaurusctl.doctor.check import Check, Context, Verdict, failure, ok, warning
from osaurusd.wire import machine as supported_machine
from osaurusd.wire.sizes import format_bytes

_DISK_FAILURE_BYTES = 200 * 1000**2
_DISK_WARNING_BYTES = 5 * 1000**3
_MEMORY_WARNING_BYTES = 2 * 1000**3
_HUB = "https://huggingface.co"
_HUB_TIMEOUT_SECONDS = 5.0
_TAIL_BYTES = 4096


def check_support(_: Context) -> Iterator[Check]:
    """Check that osaurusd supports this machine."""
    try:
        supported_machine.check()
    except supported_machine.UnsupportedMachine as error:
        yield failure("machine", str(error), f"use {supported_machine.SUPPORTED}")


def check_disk(context: Context) -> Iterator[Check]:
    """Check the free space of each disk with models or logs."""
    devices: set[int] = set()
    for path in (context.paths.models_dir, context.paths.log_dir):
        existing = next(each for each in (path, *path.parents) if each.exists())
        if (device := existing.stat().st_dev) in devices:
            continue
        devices.add(device)
        free = shutil.disk_usage(existing).free
        detail = f"{format_bytes(free)} free at {existing}"
        fix = 'free disk space with "osaurusctl prune" or "osaurusctl rm NAME"'
        if free < _DISK_FAILURE_BYTES:
            yield failure("disk", detail, fix)
        elif free < _DISK_WARNING_BYTES:
            yield warning("disk", detail, fix)
        else:
            yield ok("disk", detail)


def check_memory(_: Context) -> Iterator[Check]:
    memory = psutil.virtual_memory()
    detail = f"{format_bytes(memory.available)} of {format_bytes(memory.total)} available"
    if memory.available < _MEMORY_WARNING_BYTES:
        fix = 'free memory with "osaurusctl unload NAME"; "osaurusctl ps" lists loaded models'
        yield warning("memory", detail, fix)
    else:
        yield ok("memory", detail)


def check_model_folders(context: Context) -> Iterator[Check]:
    """Check that the daemon can read the model folders: macOS may deny the daemon access that a terminal has."""
    if context.diagnosis is None:
        # Without the daemon, only the configured folders can be checked.
        for root in context.config.models.roots if context.config else []:
            if not Path(root).expanduser().exists():
                yield _missing_folder(root)
        return
    for probe in context.diagnosis.stores:
        if probe.missing:
            yield _missing_folder(probe.path)
        elif probe.readable:
            yield ok("models", f"{probe.path}: {probe.reason or 'readable'}")
        else:
            fix = (
                "grant the daemon access; on macOS in System Settings > Privacy & Security > Files and Folders, for "
                f"{context.diagnosis.installation.executable}"
            )
            yield failure("models", f"{probe.path}: {probe.reason}", fix)


def _missing_folder(path: str) -> Check:
    fix = 'create the folder, connect its disk, or remove it from the file that "osaurusctl config path" prints'
    return warning("models", f"{path} in `models.roots` does not exist", fix)


def check_other_stores(context: Context) -> Iterator[Check]:
    """Mention models of other programs that the daemon could serve."""
    if context.config is None:
        return
    for store in stores.find_stores(context.paths.config_file):
        if not store.served:
            fix = 'run "osaurusctl config discover" to serve them; the folder is not changed'
            yield Check(name="other models", verdict=Verdict.OK, detail=stores.describe(store), fix=fix)


def check_blas(context: Context) -> Iterator[Check]:
    if not sys.platform.startswith("linux") or context.diagnosis is None:
        return
    if context.diagnosis.blas is None:
        detail = "not installed; prefill is many times slower without it"
        yield warning("OpenBLAS", detail, 'run "apt install libopenblas0-pthread"')
    else:
        yield ok("OpenBLAS", context.diagnosis.blas)


def check_vision(context: Context) -> Iterator[Check]:
    """Mention the models that could accept images, but do not."""
    if context.diagnosis is None:
        return
    for name, reason in sorted(context.diagnosis.vision_refusals.items()):
        yield ok("images", f'model "{name}" does not accept images: {reason}')


def check_hub(_: Context) -> Iterator[Check]:
    """Check that the hub is reachable. Working offline is not a failure."""
    endpoint = os.environ.get("HF_ENDPOINT") or _HUB
    url = urlsplit(endpoint)
    connection_type = http.client.HTTPConnection if url.scheme == "http" else http.client.HTTPSConnection
    try:
        connection = connection_type(url.hostname or "", url.port, timeout=_HUB_TIMEOUT_SECONDS)
        connection.request("HEAD", "/")
        connection.getresponse()
        connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        fix = "check the network to download models; models on this machine work without it"
        yield warning("hub", f"{endpoint} is unreachable: {reason}", fix)
    else:
        yield ok("hub", f"{endpoint} is reachable")


def check_crash_output(context: Context) -> Iterator[Check]:
    """Check the files for standard error. They are normally empty, because the daemon logs to its own file."""
    for file in (context.paths.log_dir / "launchd.err.log", context.paths.crash_log):
        line = _read_last_line(file)
        if line is not None:
            yield warning("crash output", f"{file}: {line}", "remove the file once the cause is fixed")


def _read_last_line(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return None
    return lines[-1] if lines else None
