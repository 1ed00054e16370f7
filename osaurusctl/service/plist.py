"""The property list: from the template to the job's values and back."""

import importlib.resources
import plistlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import osaurusctl
from osaurusctl.errors import CliError
from osaurusctl.service import schema
from osaurusctl.service.job import Job, Mode, options

TEMPLATE = "ai.osaurus.osaurusd.plist"

_OTHER_VOLUME = "keep OSAURUS_HOME on the boot volume; `models.roots` names folders of models on other ones"
_NOT_CARRIED = frozenset({"PATH", "HOME", "OSAURUS_SUPERVISED"})


def render(job: Job, label: str) -> dict[str, Any]:
    """The property list of a job.

    Raises:
        CliError: a value is none that launchd takes; the message names the key.
    """
    values = {"@OSAURUSD@": str(job.launcher), "@HOME@": str(job.user_home), "@LOGS@": str(job.log_dir)}
    tree: dict[str, Any] = _substituted(plistlib.loads(_template()), values)
    tree["Label"] = label
    tree["ProgramArguments"] = job.arguments
    tree["EnvironmentVariables"] |= job.env
    if job.mode is Mode.HEADLESS:
        # Not Aqua too: a login at the screen would start a second one.
        tree["LimitLoadToSessionType"] = "Background"
    if job.mode is Mode.SYSTEM:
        tree["UserName"] = job.user
        tree["EnvironmentVariables"]["HOME"] = str(job.user_home)
    if wrong := schema.problems(tree, job.mode):
        hint = _OTHER_VOLUME if any("boot volume" in each for each in wrong) else None
        raise CliError("\n".join(["the service file would be wrong:", *wrong]), hint=hint, code="bad_service_file")
    return tree


def encode(tree: Mapping[str, Any]) -> bytes:
    """The file's content; keys stay in the template's order."""
    return plistlib.dumps(dict(tree), sort_keys=False)


def decode(content: bytes) -> dict[str, Any]:
    """The other way round.

    Raises:
        CliError: it is no property list that holds a dictionary.
    """
    try:
        tree = plistlib.loads(content)
    except (ExpatError, ValueError, OverflowError, AttributeError) as error:
        raise CliError(f"it is no property list: {error}", code="bad_service_file") from error
    if not isinstance(tree, dict):
        raise CliError("it is no property list of a job", code="bad_service_file")
    return tree


def recorded(tree: Mapping[str, Any], mode: Mode) -> Job:
    """The job that a property list of ours describes.

    Raises:
        CliError: it is not one of ours.
    """
    try:
        arguments = [str(word) for word in tree["ProgramArguments"]]
        asked = options(arguments)
        env = {name: value for name, value in tree["EnvironmentVariables"].items() if name not in _NOT_CARRIED}
        return Job(
            launcher=Path(arguments[0]),
            user_home=Path(tree["WorkingDirectory"]),
            log_dir=Path(tree["StandardErrorPath"]).parent,
            host=asked.host,
            port=asked.port,
            insecure=asked.insecure,
            env=env,
            mode=mode,
            user=tree.get("UserName"),
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CliError("it is no property list of osaurusd", code="bad_service_file") from error


def _template() -> bytes:
    """The template: beside the package in a checkout, inside it where it is installed."""
    checkout = Path(osaurusctl.__file__).parents[1] / "launchd" / TEMPLATE
    if checkout.is_file():
        return checkout.read_bytes()
    return (importlib.resources.files("osaurusctl") / "launchd" / TEMPLATE).read_bytes()


def _substituted(value: Any, values: Mapping[str, str]) -> Any:
    """In the parsed tree, so that no character of a path can end a string or a tag."""
    match value:
        case str():
            for name, replacement in values.items():
                value = value.replace(name, replacement)
            return value
        case dict():
            return {key: _substituted(each, values) for key, each in value.items()}
        case list():
            return [_substituted(each, values) for each in value]
        case _:
            return value
