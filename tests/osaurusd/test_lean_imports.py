"""Processes start without a library that they do not use. Fails if structlog changes how it imports it."""

import subprocess
import sys

import pytest


def run(code):
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "module",
    ["osaurusd.__main__", "osaurusd.downloads.worker.__main__", "osaurusd.imports.worker.importer"],
)
def test_rich_is_not_loaded(module):
    run(f"import sys, {module}; assert 'rich' not in sys.modules; import rich.console")
