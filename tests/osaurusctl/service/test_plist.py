"""The property list: valid for launchd, and the job in it can be parsed again."""

import dataclasses
import plistlib
from pathlib import Path

import jsonschema
import pytest

from osaurusctl.errors import CliError
from osaurusctl.service import plist
from osaurusctl.service.job import LABEL, Job, Mode

SPECIAL_CHARACTERS = "/tmp/a b & <c> \"d\" 'e' @LOGS@x ü"
PATH = {"type": "string", "pattern": "^/"}

# The keys of launchd.plist(5) that we use. launchd ignores unknown keys and values of the wrong type without a message.
# It must not contain `EnableTransactions` (launchd would kill the daemon without SIGTERM) or `AbandonProcessGroup`
# (workers would outlive the daemon). The subkeys of `KeepAlive` are ORed, so a second one would restart after exit 0.
SCHEMA = {
    "type": "object",
    "properties": {
        "Label": {"const": LABEL},
        "ProgramArguments": {"type": "array", "prefixItems": [PATH], "items": {"type": "string"}, "minItems": 2},
        "RunAtLoad": {"const": True},
        "KeepAlive": {"const": {"SuccessfulExit": False}},
        "ThrottleInterval": {"type": "integer", "minimum": 1, "maximum": 300},
        "ExitTimeOut": {"type": "integer", "minimum": 5, "maximum": 3600},
        "ProcessType": {"const": "Interactive"},
        "Umask": {"const": 0o077},
        "SoftResourceLimits": {"const": {"NumberOfFiles": 8192}},
        "WorkingDirectory": PATH,
        "StandardOutPath": PATH,
        "StandardErrorPath": PATH,
        "EnvironmentVariables": {"type": "object", "additionalProperties": {"type": "string"}},
        "LimitLoadToSessionType": {"const": "Background"},
        "UserName": {"type": "string", "not": {"const": "root"}},
    },
    "required": [
        "Label",
        "ProgramArguments",
        "RunAtLoad",
        "KeepAlive",
        "ThrottleInterval",
        "ExitTimeOut",
        "ProcessType",
        "Umask",
        "WorkingDirectory",
        "StandardErrorPath",
    ],
    "additionalProperties": False,
}


def build_job(mode: Mode = Mode.LOGIN, **fields) -> Job:
    return Job(
        **{
            "launcher": Path("/opt/x & y/osaurusd"),
            "user_home": Path("/Users/a b"),
            "log_dir": Path("/Users/a b/Library/Logs/osaurusd"),
            "env": {"HF_HOME": "/x <y> & z", "EMPTY": ""},
            "mode": mode,
            "user": "me" if mode is Mode.SYSTEM else None,
            **fields,
        }
    )


@pytest.mark.parametrize("mode", list(Mode))
def test_rendered_property_list_is_valid(mode):
    tree = plistlib.loads(plist.encode(plist.render(build_job(mode, port=9000), LABEL)))
    jsonschema.validate(tree, SCHEMA)
    assert ("UserName" in tree) == (mode is Mode.SYSTEM)
    assert ("LimitLoadToSessionType" in tree) == (mode is Mode.HEADLESS)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(
    ("host", "port", "insecure"), [(None, None, False), ("::1", 0, True), ("localhost", 65535, False)]
)
def test_parsed_job_equals_the_rendered_job(mode, host, port, insecure):
    job = build_job(mode, host=host, port=port, insecure=insecure)
    content = plist.encode(plist.render(job, LABEL))
    assert plist.parse_job(plist.decode(content), mode) == job


def test_special_characters_of_values_are_escaped():
    job = build_job(launcher=Path("/bin/<a>&amp;"), env={"X": SPECIAL_CHARACTERS})
    tree = plistlib.loads(plist.encode(plist.render(job, LABEL)))
    assert tree["ProgramArguments"][0] == "/bin/<a>&amp;"
    assert tree["EnvironmentVariables"]["X"] == SPECIAL_CHARACTERS


def test_system_service_runs_as_the_user_with_its_home():
    tree = plist.render(build_job(Mode.SYSTEM), LABEL)
    assert (tree["UserName"], tree["EnvironmentVariables"]["HOME"]) == ("me", "/Users/a b")


@pytest.mark.parametrize("field", ["launcher", "user_home", "log_dir"])
def test_path_outside_the_boot_volume_is_rejected(field, tmp_path):
    (tmp_path / "link").symlink_to("/Volumes/External")
    for path in (Path("/Volumes/External"), tmp_path / "link"):
        with pytest.raises(CliError, match="not on the boot volume") as error:
            plist.render(dataclasses.replace(build_job(), **{field: path}), LABEL)
        assert "models.roots" in error.value.hint


@pytest.mark.parametrize("content", [b"", b"<plist>", b"<plist><dict><key>a</key></dict></plist>", b"<a>&&</a>"])
def test_malformed_content_is_rejected(content):
    with pytest.raises(CliError, match="invalid property list"):
        plist.decode(content)


@pytest.mark.parametrize(
    "tree", [{}, {"ProgramArguments": []}, {"ProgramArguments": ["x"], "EnvironmentVariables": []}]
)
def test_property_list_of_another_job_is_rejected(tree):
    with pytest.raises(CliError, match="not written by osaurusctl"):
        plist.parse_job(tree, Mode.LOGIN)
