"""The one service of this environment: which manager has it, and whether it is this home's."""

import os
import pwd
from pathlib import Path

from osaurusctl.errors import CliError
from osaurusctl.service import manager as managers
from osaurusctl.service.job import LABEL, Job, Mode, carried
from osaurusctl.service.launchd import Launchd
from osaurusctl.service.manager import Manager
from osaurusctl.service.run import run
from osaurusctl.service.systemd import Systemd

LABEL_VARIABLE = "OSAURUS_SERVICE_LABEL"
ROOT_VARIABLE = "OSAURUS_ALLOW_ROOT"


def label() -> str:
    return os.environ.get(LABEL_VARIABLE) or LABEL


def for_mode(mode: Mode) -> Manager:
    """This machine's manager, for a service of that mode.

    Raises:
        CliError: there is none, or it knows no such mode.
    """
    match managers.kind():
        case "launchd":
            return Launchd(run, label(), mode, os.getuid(), Path.home())
        case "systemd":
            return Systemd(run, label(), mode)
        case _:
            raise managers.none_here()


def installed() -> Manager | None:
    """The manager whose service file is there, whichever home it is for; None if there is none."""
    if managers.kind() is None:
        return None
    candidates = [for_mode(mode) for mode in Mode if managers.kind() == "launchd" or mode is Mode.LOGIN]
    there = [each for each in candidates if each.file.exists()]
    # A file for sessions without a screen lies where one for logins would.
    return next(
        (each for each in there if each.mode is Mode.SYSTEM or _is_headless(each) == (each.mode is Mode.HEADLESS)), None
    )


def found() -> Manager | None:
    """The manager of what is installed, or of what is loaded though its file is gone; None if there is nothing."""
    if (there := installed()) is not None:
        return there
    if managers.kind() is None:
        return None
    usual = for_mode(Mode.LOGIN)
    return usual if usual.facts().loaded else None


def ours() -> Manager | None:
    """The installed service, if it is this home's: what `up` and `down` act on."""
    there = installed()
    return there if there is not None and is_for(there) else None


def needed() -> Manager:
    """The installed service.

    Raises:
        CliError: there is none, or it is another home's.
    """
    if managers.kind() is None:
        raise managers.none_here()
    if (there := found()) is None:
        raise managers.not_installed()
    if not is_for(there):
        raise other_home(there)
    return there


def other_home(manager: Manager) -> CliError:
    return CliError(
        f"{manager.file} is the service of another home",
        hint=f"set OSAURUS_HOME as it was at its installation; {LABEL_VARIABLE} names a second service",
        code="other_home",
    )


def is_for(manager: Manager) -> bool:
    """Whether the installed service's daemon uses this environment's home. One that cannot be read is taken as ours."""
    try:
        job = manager.recorded()
    except CliError:
        return True
    return job is None or _places(job) == _places_here()


def refuse_root() -> None:
    """Root has no login of its own, and a service that it installed would belong to nobody who logs in."""
    if os.geteuid() == 0 and not os.environ.get(ROOT_VARIABLE):
        raise CliError(
            "the service belongs to a user, and this is root",
            hint="run it as that user, without sudo; `install --system` calls sudo itself where it must",
            code="root",
        )


def refuse_inside() -> None:
    """A program that runs inside the service would be ended with it, halfway."""
    inside = os.environ.get("XPC_SERVICE_NAME") == label()
    if inside or os.environ.get("OSAURUS_SUPERVISED") in ("launchd", "systemd"):
        raise CliError(
            "this runs inside the service, which would end it together with itself",
            hint="run it from a terminal",
            code="inside_service",
        )


def user_name() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _is_headless(manager: Manager) -> bool:
    """Whether a file in the agents' folder is one for sessions without a screen."""
    return manager.name == "launchd" and b"LimitLoadToSessionType" in manager.file.read_bytes()


def _places(job: Job) -> str | None:
    return job.env.get("OSAURUS_HOME")


def _places_here() -> str | None:
    return carried().get("OSAURUS_HOME")
