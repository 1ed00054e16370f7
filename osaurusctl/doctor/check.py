"""The result of a check, and the context that all checks share."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from osaurusctl.service.manager import ServiceManager, ServiceStatus
from osaurusd.config import Config
from osaurusd.wire.admin import DaemonStatus
from osaurusd.wire.diagnosis import Diagnosis
from osaurusd.wire.paths import Paths


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    verdict: Verdict
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Context:
    """The state that the checks examine. None means that a component does not exist or does not respond."""

    paths: Paths
    manager: ServiceManager | None
    service: ServiceStatus | None
    config: Config | None
    status: DaemonStatus | None
    diagnosis: Diagnosis | None
    daemon_error: str | None


def ok(name: str, detail: str) -> Check:
    return Check(name=name, verdict=Verdict.OK, detail=detail)


def warning(name: str, detail: str, fix: str | None = None) -> Check:
    return Check(name=name, verdict=Verdict.WARNING, detail=detail, fix=fix)


def failure(name: str, detail: str, fix: str) -> Check:
    return Check(name=name, verdict=Verdict.FAILURE, detail=detail, fix=fix)
