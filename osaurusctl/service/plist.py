"""The launchd property list: render the template for a job, and parse the job from an installed file."""

import importlib.resources
import os
import plistlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import osaurusctl
from osaurusctl.errors import CliError
from osaurusctl.service.job import Job, Mode, parse_serve_options

TEMPLATE = "ai.osaurus.osaurusd.plist"

_SET_BY_TEMPLATE = frozenset({"PATH", "HOME", "OSAURUS_SUPERVISED"})


def render(job: Job, label: str) -> dict[str, Any]:
    """Return the property list of a job.

    Raises:
        CliError: a path is on a volume where launchd cannot open it.
    """
    for path in (job.launcher, job.user_home, job.log_dir):
        _require_boot_volume(path)
    values = {"@OSAURUSD@": str(job.launcher), "@HOME@": str(job.user_home), "@LOGS@": str(job.log_dir)}
    tree: dict[str, Any] = _substitute(plistlib.loads(_read_template()), values)
    tree["Label"] = label
    tree["ProgramArguments"] = job.arguments
    tree["EnvironmentVariables"] |= job.env
    if job.mode is Mode.HEADLESS:
        # Not Aqua as well: a login at the screen would start a second daemon.
        tree["LimitLoadToSessionType"] = "Background"
    if job.mode is Mode.SYSTEM:
        tree["UserName"] = job.user
        tree["EnvironmentVariables"]["HOME"] = str(job.user_home)
    return tree


def encode(tree: Mapping[str, Any]) -> bytes:
    """Encode a property list; the keys keep the order of the template."""
    return plistlib.dumps(dict(tree), sort_keys=False)


def decode(content: bytes) -> dict[str, Any]:
    """Decode a property list.

    Raises:
        CliError: `content` is not a property list with a dictionary.
    """
    try:
        tree = plistlib.loads(content)
    except (ExpatError, ValueError, OverflowError, AttributeError) as error:
        raise CliError(f"invalid property list: {error}", code="bad_service_file") from error
    if not isinstance(tree, dict):
        raise CliError("invalid property list: it is not a dictionary", code="bad_service_file")
    return tree


def parse_job(tree: Mapping[str, Any], mode: Mode) -> Job:
    """Return the job that a property list written by `render` describes.

    Raises:
        CliError: the property list was not written by `render`.
    """
    try:
        arguments = [str(word) for word in tree["ProgramArguments"]]
        options = parse_serve_options(arguments)
        variables = tree["EnvironmentVariables"].items()
        return Job(
            launcher=Path(arguments[0]),
            user_home=Path(tree["WorkingDirectory"]),
            log_dir=Path(tree["StandardErrorPath"]).parent,
            host=options.host,
            port=options.port,
            insecure=options.insecure,
            env={name: value for name, value in variables if name not in _SET_BY_TEMPLATE},
            mode=mode,
            user=tree.get("UserName"),
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CliError("the property list was not written by osaurusctl", code="bad_service_file") from error


def _require_boot_volume(path: Path) -> None:
    """Check a path that launchd opens before the program runs; launchd has no access to other volumes."""
    if str(path).startswith("/Volumes/") or os.path.realpath(path).startswith("/Volumes/"):
        raise CliError(
            f"{path} is not on the boot volume, so launchd cannot open it",
            hint="move OSAURUS_HOME to the boot volume; `models.roots` adds model folders on other volumes",
            code="bad_service_file",
        )


def _read_template() -> bytes:
    """Read the template: next to the package in a checkout, inside the package when installed from a wheel."""
    checkout = Path(osaurusctl.__file__).parents[1] / "launchd" / TEMPLATE
    if checkout.is_file():
        return checkout.read_bytes()
    return (importlib.resources.files("osaurusctl") / "launchd" / TEMPLATE).read_bytes()


def _substitute(value: Any, values: Mapping[str, str]) -> Any:
    """Replace placeholders in the parsed tree, where no character of a path can break the XML."""
    match value:
        case str():
            for name, replacement in values.items():
                value = value.replace(name, replacement)
            return value
        case dict():
            return {key: _substitute(each, values) for key, each in value.items()}
        case list():
            return [_substitute(each, values) for each in value]
        case _:
            return value
