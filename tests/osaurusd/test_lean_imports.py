"""Processes start without what they do not use. Fails if the libraries change how they import it."""

import os
import subprocess
import sys

import pytest


def run(code, **variables):
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, check=True, timeout=240)


@pytest.mark.parametrize(
    "module",
    ["osaurusd.serve", "osaurusd.downloads.worker.__main__", "osaurusd.imports.worker.importer"],
)
def test_rich_is_not_loaded(module):
    run(f"import sys, {module}; assert 'rich' not in sys.modules; import rich.console")


@pytest.mark.parametrize("variables", [{}, {"SSL_CERT_FILE": "/certificates.pem"}])
def test_daemon_starts_without_parsing_ca_certificates(variables):
    run(
        "import contextlib, gc, os, ssl, sys\n"
        "from osaurusd import __main__ as daemon\n"
        "environment = dict(os.environ)\n"
        "sys.argv = ['osaurusd', 'serve']\n"
        # Its home is invalid, so it exits as soon as everything is imported.
        "with contextlib.suppress(SystemExit):\n"
        "    daemon.main()\n"
        "gc.unfreeze()\n"
        "contexts = [value for value in gc.get_objects() if isinstance(value, ssl.SSLContext)]\n"
        "assert contexts and not any(context.cert_store_stats()['x509'] for context in contexts)\n"
        "assert dict(os.environ) == environment\n",
        OSAURUS_HOME=f"/{'x' * 200}",
        **variables,
    )


@pytest.mark.parametrize(
    "module",
    ["osaurusd.imports.worker.__main__", "osaurusd.imports.worker.check", "osaurusd.imports.worker.quantize"],
)
def test_import_processes_watch_the_daemon_before_they_load_libraries(module):
    run(
        f"import sys, {module}\n"
        "loaded = {'asyncio', 'structlog', 'numpy', 'mlx', 'tokenizers', 'osaurusd.log'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
