"""`make screenshots`: photograph the views of the web page, and save them in docs/images."""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from anthropic import Anthropic
from ollama import Client
from openai import OpenAI
from playwright.sync_api import Page

from osaurusd.imports.worker.importer import import_model
from tests import browser as browsers
from tests import daemons, embedding_model, starter_model

TARGET = Path(__file__).parents[2] / "docs" / "images"
CHAT, EMBEDDER = "smollm2-135m-instruct", "all-minilm-l6-v2"
DESKTOP = {"width": 1200, "height": 800}
QUESTIONS = ("Name three colors.", "What is the capital of Italy?", "Say hello in French.")
SAMPLE_SECONDS = 6


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="osaurus-", dir="/tmp") as name, browsers.running() as browser:
        home = Path(name)
        create_models(home / "models")
        with daemons.running(home) as daemon:
            send_requests(daemon.url)
            for file, options, prepare in (
                ("ui-chat", {}, chat),
                ("ui-overview", {}, overview),
                ("ui-models", {}, lambda page: page.get_by_role("link", name="Models", exact=True).click()),
                ("ui-requests", {}, lambda page: page.get_by_role("link", name="Requests", exact=True).click()),
                ("ui-chat-dark", {"color_scheme": "dark"}, chat),
                ("ui-phone", {"viewport": browsers.PHONE, "device_scale_factor": 2}, chat),
            ):
                with browsers.visiting(browser, daemon.url, **{"viewport": DESKTOP, **options}) as visitor:
                    photograph(visitor.open(), file, prepare)
            with (
                browsers.management_link(home) as link,
                browsers.visiting(browser, link, viewport=DESKTOP) as visitor,
            ):
                photograph(visitor.open(), "ui-manage", manage, full_page=False)


def create_models(folder: Path) -> None:
    (folder / CHAT).mkdir(parents=True)
    import_model(starter_model.fetch(), folder / CHAT, lambda *_: None)
    shutil.copytree(embedding_model.fetch(), folder / EMBEDDER)


def send_requests(url: str) -> None:
    """Use each API, so that the views have something to show."""
    openai = OpenAI(base_url=url, api_key="x")
    openai.embeddings.create(model=EMBEDDER, input=["A sentence", "Another one"])
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        openai.chat.completions.create(model=CHAT, messages=messages, max_tokens=60)
        Anthropic(base_url=url, api_key="x").messages.create(model=CHAT, messages=messages, max_tokens=40)
        Client(host=url).chat(model=CHAT, messages=messages, options={"num_predict": 30})


def overview(page: Page) -> None:
    # Until the chart has the requests.
    page.wait_for_timeout(SAMPLE_SECONDS * 1000)


def chat(page: Page) -> None:
    page.get_by_role("link", name="Chat", exact=True).click()
    page.get_by_label("Message", exact=True).fill("What is the capital of France?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Regenerate").wait_for()


def manage(page: Page) -> None:
    page.get_by_role("link", name="Models", exact=True).click()
    page.get_by_role("heading", name="Recommended").wait_for()


def photograph(page: Page, name: str, prepare: Callable[[Page], object], *, full_page: bool = True) -> None:
    prepare(page)
    path = TARGET / f"{name}.png"
    page.screenshot(path=path, full_page=full_page)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
