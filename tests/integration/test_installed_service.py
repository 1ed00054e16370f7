"""The service installed from a wheel, without a checkout: installation, chat request, upgrade, removal."""

import contextlib
import json
import shutil
import subprocess
import sys
import venv
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import macs

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the built wheel; its dependencies come from the current environment."""
    folder, wheels = tmp_path_factory.mktemp("installed env"), tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT], check=True, timeout=300)
    venv.create(folder, symlinks=True)
    (wheel,) = wheels.glob("*.whl")
    python = folder / "bin" / "python"
    target = [*pip, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(target, check=True, timeout=300)
    (packages,) = folder.glob("lib/python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    return folder / "bin"


def test_service_from_a_wheel_answers_a_chat_request_and_survives_an_upgrade(
    programs: Path, smollm_folder: Path
) -> None:
    with macs.mac("gui") as mac:
        mac.env.pop("PYTHONPATH", None)
        shutil.copytree(smollm_folder, mac.home / "models" / "smollm2-135m-instruct")
        ctl = programs / "osaurusctl"
        run = mac.run(ctl, "install", "--port", "0")
        assert 0 == run.returncode, run.stderr
        status = json.loads(mac.run(ctl, "status", "--json").stdout)
        assert (True, []) == (status["service"]["ready"], status["service"]["drift"])
        address = urlsplit(status["endpoints"][0])
        question = [{"role": "user", "content": "What is the capital of France?"}]
        body = {"model": "smollm2-135m-instruct", "messages": question, "temperature": 0, "max_tokens": 20}
        with contextlib.closing(HTTPConnection(address.hostname or "", address.port, timeout=120)) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        assert "Paris" in answer["choices"][0]["message"]["content"]

        (package,) = programs.parent.glob("lib/python*/site-packages/osaurusd/__init__.py")
        package.write_text(package.read_text().replace("__version__ = ", "__version__ = 'next' or "))
        assert "to finish the upgrade" in mac.run(ctl, "status").stdout
        assert "to finish the upgrade" in mac.run(ctl, "doctor").stdout
        assert 0 == mac.run(ctl, "restart").returncode
        assert "upgrade" not in mac.run(ctl, "status").stdout
        assert 0 == mac.run(ctl, "uninstall").returncode
