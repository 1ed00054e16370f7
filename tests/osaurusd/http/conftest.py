import json

import pytest

from osaurusd import log


@pytest.fixture
def logged(tmp_path):
    """Logs to a file; a call stops that and returns the lines."""
    file = tmp_path / "osaurusd.log"
    configured = log.configured("info", file, None)
    configured.__enter__()
    stopped = []

    def lines():
        if not stopped:
            stopped.append(configured.__exit__(None, None, None))
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    yield lines
    lines()
