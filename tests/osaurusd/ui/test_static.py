"""The built files of the web page, as the wheel contains them."""

import gzip
import re
from pathlib import Path

from osaurusd.wire.page import ASSETS, FOLDER

MAX_BYTES = 150_000
HOSTS = {"www.w3.org", "github.com"}
"""Hosts in names of XML namespaces and in an error message, from which nothing is loaded."""


def assets() -> list[Path]:
    return sorted((FOLDER / "assets").iterdir())


def test_page_is_small() -> None:
    size = sum(len(gzip.compress(file.read_bytes())) for file in [FOLDER / "index.html", *assets()])

    assert size <= MAX_BYTES


def test_page_loads_its_own_files_only_and_all_exist() -> None:
    document = (FOLDER / "index.html").read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', document)

    assert {ASSETS + file.name for file in assets()} == set(addresses)


def test_page_has_no_inline_script_or_style() -> None:
    document = (FOLDER / "index.html").read_text()

    assert [] == re.findall(r"<style|\sstyle=|\son\w+=|javascript:", document)
    assert [""] == re.findall(r"<script[^>]*>(.*?)</script>", document, re.DOTALL)


def test_files_name_no_other_host() -> None:
    for file in assets():
        hosts = set(re.findall(r"\bhttps?://([\w.-]+)", file.read_text()))
        assert hosts <= HOSTS, file.name
