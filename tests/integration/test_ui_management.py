"""The management page in a real browser: `osaurusctl ui`, a real daemon, and the fake hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import APIError, OpenAI
from playwright.sync_api import Browser, Page, expect

from tests import browser as browsers
from tests import daemons
from tests.browser import Visitor
from tests.daemons import Daemon
from tests.fakes import hub as fake_hub
from tests.fakes.hub import Hub
from tests.integration.test_pulls import create_sharded_model, hub_environment
from tests.models import NO_END_TOKEN, make_tiny
from tests.osaurusd.models import disk

SMALL, LARGE = "org/small", "org/large"
LARGE_BYTES = 16_000_000
SLOW_BYTES_PER_SECOND = 500_000
BUSY, IDLE = "busy", "idle"
VIEWS = {
    "overview": "",
    "models": "#/models",
    "logs": "#/system/logs",
    "events": "#/system/events",
    "config": "#/system/config",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.running() as running:
        yield running


@pytest.fixture(scope="module")
def hub(tmp_path_factory, browser) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    counts = {"parameters": {"BF16": 1000}, "total": 1000}
    fake_hub.publish(root, SMALL, disk.model(), safetensors=counts)
    shards = create_sharded_model(tmp_path_factory.mktemp("shards"), 1, LARGE_BYTES)
    fake_hub.publish(root, LARGE, shards)
    with fake_hub.running(root) as running:
        yield running


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path, hub: Hub) -> Iterator[Daemon]:
    for name in (BUSY, IDLE):
        make_tiny(
            module_home / "models" / name,
            tiny_tokenizer,
            tie_word_embeddings=False,
            eos_token_id=NO_END_TOKEN,
            max_position_embeddings=65536,
        )
    with daemons.running(module_home, **hub_environment(hub)) as running:
        yield running


@pytest.fixture(scope="module")
def manager(browser: Browser, daemon: Daemon, hub: Hub) -> Iterator[Visitor]:
    """A browser with a session. All tests share it, as each link is valid once."""
    with (
        browsers.management_link(daemon.home, **hub_environment(hub)) as link,
        browsers.visiting(browser, link) as visitor,
    ):
        visitor.open()
        yield visitor


@pytest.fixture
def page(manager: Visitor) -> Iterator[Page]:
    page = manager.show("#/models")
    yield page
    assert [] == manager.problems


def row(page: Page, model: str):
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=model))


def test_link_opens_a_session_once(browser: Browser, daemon: Daemon, hub: Hub) -> None:
    with (
        browsers.management_link(daemon.home, **hub_environment(hub)) as link,
        browsers.visiting(browser, link) as first,
        browsers.visiting(browser, link) as second,
    ):
        page = first.open()
        assert "token" not in page.url
        page.reload()
        expect(page.get_by_role("link", name="System")).to_be_visible()
        expect(page.get_by_text("Live", exact=True)).to_be_visible()

        again = second.open(wait=False)
        expect(again.get_by_role("alert")).to_contain_text("Run osaurusctl ui in a terminal")
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("The session of this page is over.")


def test_model_is_downloaded_with_progress_and_removed_after_a_question(page: Page, hub: Hub) -> None:
    hub.set(rate=SLOW_BYTES_PER_SECOND)
    page.get_by_label("Words to search for, or a repository").fill(LARGE)
    page.get_by_role("button", name="Download", exact=True).click()
    bar = page.get_by_role("progressbar", name=f"Download of {LARGE}")
    expect(bar).to_be_visible()
    expect(page.get_by_text("/s, ")).to_contain_text("% of 16.0 MB")
    hub.reset()
    expect(row(page, "large")).to_be_visible()
    expect(bar).to_be_hidden()

    page.get_by_role("button", name="Remove large").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("frees 16.0 MB")
    dialog.get_by_role("button", name="Cancel").click()
    expect(row(page, "large")).to_be_visible()
    page.get_by_role("button", name="Remove large").click()
    dialog.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("large is removed.")).to_be_visible()
    expect(row(page, "large")).to_be_hidden()


@pytest.mark.long
def test_search_says_what_fits(page: Page) -> None:
    page.get_by_label("Words to search for, or a repository").fill("small")
    page.get_by_label("All authors").check()
    page.get_by_role("button", name="Search").click()
    found = page.get_by_role("list", name="Models found").get_by_role("listitem")
    expect(found).to_have_count(1)
    expect(found).to_contain_text(SMALL)
    expect(found).to_contain_text("fits")


def test_failed_download_says_why(page: Page) -> None:
    page.get_by_label("Words to search for, or a repository").fill("org/absent")
    page.get_by_role("button", name="Download", exact=True).click()
    expect(page.get_by_role("listitem").filter(has_text="org/absent")).to_contain_text("does not exist")


def test_model_is_loaded_pinned_and_unloaded_even_if_it_is_in_use(page: Page, daemon: Daemon) -> None:
    page.get_by_role("button", name=f"Load {IDLE}", exact=True).click()
    expect(page.get_by_text(f"{IDLE} is loaded.")).to_be_visible()
    expect(row(page, IDLE)).to_contain_text("in memory")
    page.get_by_role("button", name=f"Pin {IDLE}").click()
    expect(row(page, IDLE)).to_contain_text("stays in memory")
    page.get_by_role("button", name=f"Unpin {IDLE}").click()
    expect(page.get_by_role("button", name=f"Pin {IDLE}")).to_be_visible()
    dialog = page.get_by_role("dialog")
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="x") as client:
        answer = client.completions.create(model=IDLE, prompt="Never end", max_tokens=60_000, stream=True)
        next(iter(answer))
        page.get_by_role("button", name=f"Unload {IDLE}").click()
        expect(dialog).to_contain_text(f"Refused: `{IDLE}` is serving 1 request")
        dialog.get_by_role("button", name="Unload anyway").click()
        expect(page.get_by_text(f"{IDLE} is unloaded.")).to_be_visible()
        with pytest.raises(APIError, match="unloaded"):
            list(answer)


@pytest.mark.long
def test_unloading_a_model_in_use_is_refused_with_the_reason(browser: Browser, daemon: Daemon, page: Page) -> None:
    with browsers.visiting(browser, daemon.url) as visitor:
        chat = visitor.open("#/chat")
        chat.get_by_label("Model", exact=True).select_option(BUSY)
        chat.get_by_label("Message", exact=True).fill("Never end")
        chat.keyboard.press("Enter")
        answer = chat.get_by_label("Answer", exact=True)
        expect(answer.locator(".markdown")).to_be_visible()

        unload, dialog = page.get_by_role("button", name=f"Unload {BUSY}"), page.get_by_role("dialog")
        unload.click()
        expect(dialog).to_contain_text(f"Refused: `{BUSY}` is serving 1 request")
        page.keyboard.press("Escape")
        expect(row(page, BUSY)).to_contain_text("answers 1 request")
        unload.click()
        dialog.get_by_role("button", name="Unload anyway").click()
        expect(page.get_by_text(f"{BUSY} is unloaded.")).to_be_visible()
        expect(answer.get_by_role("alert")).to_contain_text("unloaded")


def test_settings_are_validated_and_stored(page: Page, daemon: Daemon) -> None:
    page.get_by_role("link", name="System").click()
    page.get_by_role("link", name="Configuration").click()
    page.get_by_label("Filter settings").fill("keep_alive_seconds")
    page.get_by_role("button", name="Change residency.keep_alive_seconds").click()
    value = page.get_by_label("Value of residency.keep_alive_seconds")
    save = page.get_by_role("button", name="Save")
    value.fill("soon")
    expect(page.get_by_role("alert")).to_contain_text("keep_alive_seconds")
    expect(save).to_be_disabled()
    value.fill("7m")
    expect(save).to_be_enabled()
    save.click()
    expect(page.get_by_text("residency.keep_alive_seconds is stored.")).to_be_visible()
    assert "keep_alive_seconds = 420" in (daemon.home / "config.toml").read_text()


@pytest.mark.long
def test_events_logs_and_diagnosis_are_shown(page: Page, daemon: Daemon) -> None:
    daemon.admin("POST", "/v0/load", {"model": IDLE})
    page.get_by_role("link", name="System").click()
    expect(page.get_by_role("list", name="Log of the daemon")).to_contain_text("serving")
    page.get_by_role("link", name="Events").click()
    expect(page.get_by_role("list", name="Model events")).to_contain_text("loaded")
    page.get_by_role("link", name="Doctor").click()
    expect(page.get_by_role("status").filter(has_text="checks")).to_be_visible()
    assert [] == browsers.find_violations(page)


@pytest.mark.parametrize(
    ("scheme", "size"), [pytest.param("dark", browsers.DESKTOP, marks=pytest.mark.long), ("light", browsers.PHONE)]
)
def test_management_views_are_accessible_and_fit_the_screen(page: Page, scheme: str, size: dict) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(size)
    address = page.url.split("#")[0]
    for name, fragment in VIEWS.items():
        page.goto(f"{address}{fragment or '#/'}")
        page.locator("h1").first.wait_for()
        assert 0 == browsers.overflow(page), name
        assert [] == browsers.find_violations(page), name
