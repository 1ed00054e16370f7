"""A real browser for tests of the web page: Chromium or Chrome of the system, driven by Playwright."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests import daemons

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
MAC_PROGRAM = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
TIMEOUT_MS = 60_000

# Features of Chromium that nothing here shows. The address bar alone would take most of the CPU time of a test.
# The option replaces that of Playwright, so it repeats what Playwright disables to keep the browser idle.
DISABLED_FEATURES = ("WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "LensOverlay", "MediaRouter", "OptimizationHints")

SERIOUS = {"serious", "critical"}
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 375, "height": 720}


def find_program() -> str | None:
    """Return the path of a browser."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    return found or (str(MAC_PROGRAM) if MAC_PROGRAM.exists() else None)


@contextlib.contextmanager
def running() -> Iterator[Browser]:
    """Run a browser; the test is skipped if there is none."""
    program = find_program()
    if program is None:
        pytest.skip("there is no browser; install Chromium, such as with `apt-get install chromium`")
    # Chromium refuses to run its sandbox as root.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    arguments = [*sandbox, f"--disable-features={','.join(DISABLED_FEATURES)}"]
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def management_link(home: Path, **env: str) -> Iterator[str]:
    """Run `osaurusctl ui`, and yield the link that opens a session."""
    process = subprocess.Popen(
        [sys.executable, "-m", "osaurusctl", "ui", "--no-browser", "--json"],
        env=daemons.environment(home, **env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield str(json.loads(process.stdout.readline())["url"])
        finally:
            process.send_signal(signal.SIGINT)


class Visitor:
    """Opens pages in a browser profile of its own, and collects what a person would not see.

    Attributes:
        problems: errors of scripts, violations of the Content-Security-Policy, and other messages in the console,
            except those about error responses, which the page shows itself.
    """

    def __init__(self, browser: Browser, address: str, **options: object) -> None:
        self._context = browser.new_context(**options)
        self._first: Page | None = None
        self._context.set_default_timeout(TIMEOUT_MS)
        self._url, _, self._fragment = address.partition("/#")
        self.problems: list[str] = []

    def open(self, fragment: str = "", *, wait: bool = True) -> Page:
        """Open a view, by default that of the address, and wait until it has the daemon's data."""
        page = self._context.new_page()
        self._first = self._first or page
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._note)
        page.goto(f"{self._url}/{fragment or f'#{self._fragment}'}")
        if wait:
            page.wait_for_selector(".connection.live")
        return page

    def show(self, fragment: str) -> Page:
        """Show another view on the page that was opened first, which may be the only one with a session."""
        assert self._first is not None
        self._first.goto(f"{self._url}/{fragment}")
        self._first.reload()
        self._first.wait_for_selector(".connection.live")
        return self._first

    def _note(self, message: ConsoleMessage) -> None:
        if not message.text.startswith("Failed to load resource"):
            self.problems.append(message.text)

    def close(self) -> None:
        self._context.close()


@contextlib.contextmanager
def visiting(browser: Browser, address: str, **options: object) -> Iterator[Visitor]:
    """Visit a server, or a link of `osaurusctl ui`, with a new profile: nothing is stored yet."""
    visitor = Visitor(browser, address, **options)
    try:
        yield visitor
    finally:
        visitor.close()


def find_violations(page: Page) -> list[str]:
    """Return the serious violations of accessibility rules.

    axe-core runs through the debugger protocol, which the Content-Security-Policy does not restrict.
    """
    return [
        f"{violation['id']}: {violation['nodes'][0]['html']}"
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in SERIOUS
    ]


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than the window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
