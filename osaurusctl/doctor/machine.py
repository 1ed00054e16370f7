"""Checks of the machine: room, memory, models, libraries, the hub, and what crashes have left."""

import http.client
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from osaurusctl.doctor.check import Check, Patient, failure, ok, warning
from osaurusctl.layout import size

_LEAST_DISK_BYTES = 200 * 1000**2
_LITTLE_DISK_BYTES = 5 * 1000**3
_LITTLE_MEMORY_BYTES = 2 * 1000**3
_HUB = "https://huggingface.co"
_HUB_SECONDS = 5.0
_LAST_BYTES = 4096


def disk(patient: Patient) -> Iterator[Check]:
    """Room for models and for the log; of places on one disk the first is named."""
    seen: set[int] = set()
    for place in (patient.paths.models_dir, patient.paths.log_dir):
        there = next(path for path in (place, *place.parents) if path.exists())
        if (device := there.stat().st_dev) in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(there).free
        fix = "`osaurusctl prune` and `osaurusctl rm NAME` make room"
        if free < _LEAST_DISK_BYTES:
            yield failure("disk", f"{size(free)} free at {there}", fix)
        elif free < _LITTLE_DISK_BYTES:
            yield warning("disk", f"{size(free)} free at {there}", fix)
        else:
            yield ok("disk", f"{size(free)} free at {there}")


def memory(_: Patient) -> Iterator[Check]:
    found = psutil.virtual_memory()
    text = f"{size(found.available)} of {size(found.total)} available"
    if found.available < _LITTLE_MEMORY_BYTES:
        yield warning("memory", text, "`osaurusctl ps` shows what is loaded, `osaurusctl unload NAME` makes room")
    else:
        yield ok("memory", text)


def stores(patient: Patient) -> Iterator[Check]:
    """Folders of models, as the daemon sees them: macOS may forbid it what a terminal may do."""
    for probe in patient.diagnosis.stores if patient.diagnosis else []:
        if probe.readable:
            yield ok("models", f"{probe.path}: {probe.reason or 'the daemon can read it'}")
        else:
            fix = "let the daemon read it; on macOS: System Settings > Privacy & Security > Files and Folders, for "
            program = patient.diagnosis.installation.executable if patient.diagnosis else "Python"
            yield failure("models", f"{probe.path}: {probe.reason}", fix + program)


def blas(patient: Patient) -> Iterator[Check]:
    if not sys.platform.startswith("linux") or patient.diagnosis is None:
        return
    if patient.diagnosis.blas is None:
        yield warning("OpenBLAS", "none: prompts are processed many times slower", "`apt install libopenblas0-pthread`")
    else:
        yield ok("OpenBLAS", patient.diagnosis.blas)


def hub(_: Patient) -> Iterator[Check]:
    """Whether models could be downloaded. Not to be online is no failure of ours."""
    endpoint = os.environ.get("HF_ENDPOINT") or _HUB
    address = urlsplit(endpoint)
    kind = http.client.HTTPConnection if address.scheme == "http" else http.client.HTTPSConnection
    try:
        connection = kind(address.hostname or "", address.port, timeout=_HUB_SECONDS)
        connection.request("HEAD", "/")
        connection.getresponse()
        connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        yield warning(
            "hub", f"{endpoint} cannot be reached: {error}", "models on this machine can be served all the same"
        )
    else:
        yield ok("hub", f"{endpoint} can be reached")


def crashes(patient: Patient) -> Iterator[Check]:
    """What was printed before there was a log: normally nothing."""
    for file in (patient.paths.log_dir / "launchd.err.log", patient.paths.crash_log):
        words = _last_line(file)
        if words is not None:
            yield warning("crash output", f"{file}: {words}", "if that is mended, remove the file")


def _last_line(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _LAST_BYTES))
            lines = stream.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return None
    return lines[-1] if lines else None
