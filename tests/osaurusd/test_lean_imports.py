"""The daemon starts without a library that it does not use. Fails if structlog changes how it imports it."""

import subprocess
import sys


def run(code):
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_daemon_does_not_load_rich():
    run("import sys, osaurusd.__main__; assert 'rich' not in sys.modules; import rich.console")
