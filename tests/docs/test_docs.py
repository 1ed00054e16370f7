"""The documentation covers everything that users can encounter."""

import json
import re
from pathlib import Path

import pytest

from osaurusctl.cli import COMMANDS
from osaurusctl.errors import ExitCode
from osaurusctl.service import lookup
from osaurusd.config import ENVIRONMENT, Input, Setting, settings
from osaurusd.errors import OsaurusError
from osaurusd.http.errors import STATUS, error_headers
from osaurusd.http.health import health_routes
from osaurusd.models.names import PUBLISHED
from osaurusd.platform.activation import LAUNCHD_VARIABLE
from osaurusd.pool.policy import RETRY_SECONDS
from osaurusd.protocols.anthropic.routes import anthropic_routes
from osaurusd.protocols.ollama.embeddings import Embeddings
from osaurusd.protocols.ollama.generation import Generation
from osaurusd.protocols.ollama.management import Management
from osaurusd.protocols.ollama.models import Models
from osaurusd.protocols.ollama.routes import ollama_routes
from osaurusd.protocols.openai.chat_types import ChatRequest
from osaurusd.protocols.openai.common import RequestBody
from osaurusd.protocols.openai.completion_types import CompletionRequest
from osaurusd.protocols.openai.messages import ROLES
from osaurusd.protocols.openai.responses.routes import responses_routes
from osaurusd.protocols.openai.routes import PREFIXES
from osaurusd.ui.routes import ui_routes
from osaurusd.ui.types import Memory, ModelEntry, RequestEntry, Sample, Snapshot, WorkerEntry
from osaurusd.wire.errors import ErrorCode

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

# The daemon reports these before it serves, so they have no HTTP status.
START_UP_ERRORS = (ErrorCode.CONFIG_ERROR, ErrorCode.HOME_IN_USE, ErrorCode.LISTEN_FAILED)

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "launchd/README.md")),
    *sorted(DOCS.rglob("*.md")),
]


def table_rows(page: str) -> dict[str, list[str]]:
    """The table rows of a page by their first cell, without backticks."""
    rows = {}
    for line in (DOCS / page).read_text().splitlines():
        if line.startswith("| "):
            first, *rest = [cell.strip() for cell in line.strip("|").split(" | ")]
            rows[first.strip().strip("`")] = [cell.strip("` |") for cell in rest]
    return rows


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_is_documented_with_its_status(code: ErrorCode) -> None:
    if code in START_UP_ERRORS:
        assert f"`{code}`" in (DOCS / "api" / "errors.md").read_text()
    else:
        assert str(STATUS[code]) == table_rows("api/errors.md")[code][0]


def test_situations_of_429_and_503_are_documented_with_their_retry_after() -> None:
    """Each row names a status, a code and the `Retry-After` header."""
    text = (DOCS / "api" / "errors.md").read_text()
    rows = re.findall(r"^\|[^|]+\| (429|503) `(\w+)` \| (\d+|-) \|", text, re.MULTILINE)
    codes = {code for code, status in STATUS.items() if status in (429, 503)}

    assert codes - {ErrorCode.NOT_SERVING} == {code for _, code, _ in rows}
    for status, code, retry_after in rows:
        error = OsaurusError.by_code[ErrorCode(code)]("failed")
        assert int(status) == STATUS[error.code]
        if error.code is ErrorCode.INSUFFICIENT_MEMORY and retry_after != "-":
            error.retry_after = RETRY_SECONDS
        assert retry_after == error_headers(error).get("Retry-After", "-")


@pytest.mark.parametrize("setting", list(settings()), ids=lambda setting: setting.key)
def test_every_config_key_is_documented_with_default_and_description(setting: Setting) -> None:
    default = "none" if setting.default is None else json.dumps(setting.default)
    description = setting.description + (" (needs a restart)" if setting.needs_restart else "")

    # The first cell is without its backticks.
    assert [default, description.strip("`")] == table_rows("configuration.md")[setting.key]


def test_only_existing_config_keys_are_documented() -> None:
    keys = {key for key in table_rows("configuration.md") if re.fullmatch(r"[a-z]+\.[a-z_]+", key)}

    assert set() == keys - {setting.key for setting in settings()} - {"config.toml", "run.admin"}


def test_every_environment_variable_is_documented() -> None:
    text = (DOCS / "configuration.md").read_text()
    service = (lookup.MANAGER_VARIABLE, lookup.LABEL_VARIABLE, lookup.ROOT_VARIABLE, LAUNCHD_VARIABLE)

    assert [] == [variable for variable in (*ENVIRONMENT, *service) if f"`{variable}`" not in text]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_is_documented(command: str) -> None:
    assert re.search(rf"^### `osaurusctl {command}\b", (DOCS / "cli.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_is_documented(code: ExitCode) -> None:
    assert str(int(code)) in table_rows("cli.md")


def test_every_endpoint_is_documented() -> None:
    text = (DOCS / "api.md").read_text()

    assert ("", "/v1") == PREFIXES
    for endpoint in (
        "GET /models",
        "GET /models/{id}",
        "POST /chat/completions",
        "POST /completions",
        "POST /decisions",
        "GET /health",
        "GET /metrics",
        "GET /openapi.json",
    ):
        assert f"## `{endpoint}`" in text
    for _, route in health_routes().paths:
        assert f"`{route.method} {route.path}`" in text


def test_every_endpoint_of_anthropic_is_documented() -> None:
    text = (DOCS / "api" / "anthropic.md").read_text()
    groups = anthropic_routes(None, None)
    routes = [f"`{route.method} {path.partition(':')[0]}" for group in groups for path, route in group.paths]

    assert [] == [route for route in routes if "/v1/" in route and route not in text]


def test_every_endpoint_of_the_responses_api_is_documented() -> None:
    text = (DOCS / "api" / "responses.md").read_text()
    routes = [f"`{route.method} {route.path}`" for route in responses_routes(None, None, None).routes]

    assert [] == [route for route in routes if route not in text]


def test_every_endpoint_of_ollama_is_documented() -> None:
    text = (DOCS / "api" / "ollama.md").read_text()
    group = ollama_routes(
        Generation(None, None), Embeddings(None, None), Models(None, None), Management(None, None, None, None)
    )
    routes = [f"`{route.method} {path}`" for path, route in group.paths]

    assert [] == [route for route in routes if route not in text]


def test_every_endpoint_of_the_page_is_documented() -> None:
    text = (DOCS / "api.md").read_text()
    routes = [f"`{route.method} {path.replace('{name}', 'NAME')}`" for path, route in ui_routes(None, None, None).paths]

    assert [] == [route for route in routes if route not in text]


def test_every_key_of_the_data_of_the_page_is_documented() -> None:
    documented = set(re.findall(r"`([a-z_]+)`", (DOCS / "api.md").read_text()))
    types = (Snapshot, Memory, ModelEntry, WorkerEntry, RequestEntry, Sample)

    assert set() == {key for type_ in types for key in type_.__struct_fields__} - documented


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest])
def test_every_request_field_is_documented(request_type: type[RequestBody]) -> None:
    documented = set(re.findall(r"`([a-z_]+)[`.]", (DOCS / "api.md").read_text()))

    assert set() == set(request_type.__struct_fields__) - documented


@pytest.mark.parametrize("role", list(ROLES))
def test_every_role_is_documented(role: str) -> None:
    assert f"`{role}`" in (DOCS / "api.md").read_text()


def test_published_model_names_are_documented() -> None:
    rows = table_rows("api.md")

    assert PUBLISHED == {repo: rows[repo][0] for repo in PUBLISHED}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_test_files_named_in_the_documentation_exist() -> None:
    names = {name for page in PAGES for name in re.findall(r"`(tests/[\w/]+(?:\.py|/))`", page.read_text())}

    assert len(names) > 10
    assert [] == sorted(name for name in names if not (ROOT / name).exists())


@pytest.mark.parametrize(
    ("text", "maximum"),
    [
        (r"`n` \(1 to (\d+)\)", Input().max_choices),
        (r"`top_logprobs` \(0 to (\d+)\)", Input().max_top_logprobs),
        (r"up to (\d+) tools", Input().max_tools),
        (r"Up to ([\d,]+) token ids", Input().max_logit_bias),
        (r"One string or up to (\d+)", Input().max_stop_strings),
        (r"each up to ([\d,]+) characters", Input().max_stop_length),
        (r"a list of up to (\d+) of these", Input().max_prompts),
    ],
)
def test_limits_in_the_descriptions_of_fields_are_the_defaults(text: str, maximum: int) -> None:
    found = re.findall(text, (DOCS / "api.md").read_text())

    assert {maximum} == {int(number.replace(",", "")) for number in found}
