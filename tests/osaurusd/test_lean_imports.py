"""The daemon starts without parts of libraries that it does not use. Fails if a library changes how it imports them."""

import subprocess
import sys

COUNT_CERTIFICATE_LOADS = """
import ssl
calls = []
ssl.SSLContext.load_default_certs = lambda *arguments: calls.append(arguments)
import osaurusd.__main__
assert not calls, calls
ssl.create_default_context()
assert calls, "load_default_certs was not restored"
"""


def run(code):
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_daemon_does_not_load_rich():
    run("import sys, osaurusd.__main__; assert 'rich' not in sys.modules; import rich.console")


def test_the_daemon_does_not_parse_ca_certificates():
    run(COUNT_CERTIFICATE_LOADS)
