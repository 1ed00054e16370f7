"""What a check says, and what all checks start from."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from osaurusctl.service.manager import Facts, Manager
from osaurusd.config import Config
from osaurusd.wire.admin import DaemonStatus
from osaurusd.wire.diagnosis import Diagnosis
from osaurusd.wire.paths import Paths


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, what was found, and what mends it."""

    name: str
    verdict: Verdict
    found: str
    fix: str | None = None


@dataclass(frozen=True)
class Patient:
    """Everything that is known before the checks begin. None stands for what is not there or does not answer."""

    paths: Paths
    manager: Manager | None
    facts: Facts | None
    config: Config | None
    status: DaemonStatus | None
    diagnosis: Diagnosis | None
    unanswered: str | None


def ok(name: str, found: str) -> Check:
    return Check(name=name, verdict=Verdict.OK, found=found)


def warning(name: str, found: str, fix: str | None = None) -> Check:
    return Check(name=name, verdict=Verdict.WARNING, found=found, fix=fix)


def failure(name: str, found: str, fix: str) -> Check:
    return Check(name=name, verdict=Verdict.FAILURE, found=found, fix=fix)
