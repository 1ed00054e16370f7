"""The documents say everything that users can meet, and nothing that is not there."""

import json
import re
from pathlib import Path

import pytest

from osaurusctl.cli import COMMANDS
from osaurusctl.errors import ExitCode
from osaurusctl.service import lookup
from osaurusd.config import ENVIRONMENT, Config, known_keys
from osaurusd.http.errors import STATUS
from osaurusd.models.names import PUBLISHED
from osaurusd.platform.activation import LAUNCHD_VARIABLE
from osaurusd.protocols.openai.routes import PREFIXES
from osaurusd.protocols.openai.schema.base import Request
from osaurusd.protocols.openai.schema.chat import ChatRequest
from osaurusd.protocols.openai.schema.completions import CompletionRequest
from osaurusd.protocols.openai.translate.messages import ROLES
from osaurusd.wire.errors import ErrorCode

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def rows(document: str) -> dict[str, list[str]]:
    """The table rows of a document by their first cell, backticks dropped."""
    found = {}
    for line in (DOCS / document).read_text().splitlines():
        if line.startswith("| "):
            first, *rest = [cell.strip() for cell in line.strip("|").split(" | ")]
            found[first.strip().strip("`")] = [cell.strip("` |") for cell in rest]
    return found


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_is_documented_with_its_status(code: ErrorCode) -> None:
    if code in (ErrorCode.CONFIG_ERROR, ErrorCode.HOME_IN_USE, ErrorCode.LISTEN_FAILED):
        assert f"`{code}`" in (DOCS / "api.md").read_text()
    else:
        assert str(STATUS[code]) == rows("api.md")[code][0]


@pytest.mark.parametrize("key", list(known_keys()))
def test_every_config_key_is_documented_with_its_default(key: str) -> None:
    value: object = Config()
    for name in key.split("."):
        value = getattr(value, name)
    shown = rows("configuration.md")[key][0]

    expected = "none" if value is None else json.dumps(value)
    assert expected == shown


def test_every_variable_is_documented() -> None:
    text = (DOCS / "configuration.md").read_text()

    assert [] == [variable for variable in ENVIRONMENT if f"`{variable}`" not in text]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_is_documented(command: str) -> None:
    assert re.search(rf"^### `osaurusctl {command}\b", (DOCS / "cli.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_is_documented(code: ExitCode) -> None:
    assert str(int(code)) in rows("cli.md")


def test_every_endpoint_is_documented() -> None:
    text = (DOCS / "api.md").read_text()

    assert ("", "/v1") == PREFIXES
    for endpoint in (
        "GET /models",
        "GET /models/{id}",
        "POST /chat/completions",
        "POST /completions",
        "GET /health",
        "GET /metrics",
        "GET /openapi.json",
    ):
        assert f"## `{endpoint}`" in text


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest])
def test_every_field_of_a_request_is_documented(request_type: type[Request]) -> None:
    named = set(re.findall(r"`([a-z_]+)[`.]", (DOCS / "api.md").read_text()))

    assert set() == set(request_type.__struct_fields__) - named


@pytest.mark.parametrize("role", list(ROLES))
def test_every_role_is_documented(role: str) -> None:
    assert f"`{role}`" in (DOCS / "api.md").read_text()


def test_the_published_names_are_documented() -> None:
    for repo, name in PUBLISHED.items():
        assert name == rows("api.md")[repo][0]


def test_links_between_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "launchd" / "README.md", *DOCS.glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_variable_of_the_service_is_documented() -> None:
    text = (DOCS / "configuration.md").read_text()

    for variable in (lookup.MANAGER_VARIABLE, lookup.LABEL_VARIABLE, lookup.ROOT_VARIABLE, LAUNCHD_VARIABLE):
        assert f"`{variable}`" in text


def test_every_test_that_the_table_of_attacks_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "security.md").read_text())

    assert len(named) > 30
    for file, test in named:
        assert re.search(rf"^(?:async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{test}"
