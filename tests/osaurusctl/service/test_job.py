"""Which environment variables the service gets."""

import pytest

from osaurusctl.errors import CliError
from osaurusctl.service import job
from osaurusd.config import ENVIRONMENT


def test_variables_that_override_the_configuration_are_inherited():
    assert set(job.OVERRIDES) == set(ENVIRONMENT)


def test_path_variables_are_inherited_as_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/Users/me")
    variables = job.inherited_environment(
        {"OSAURUS_HOME": "here", "HF_HOME": "~/hf", "XDG_DATA_HOME": "", "EDITOR": "vi", "HF_TOKEN": "x"}
    )
    assert variables == {"OSAURUS_HOME": str(tmp_path / "here"), "HF_HOME": "/Users/me/hf"}


def test_network_settings_are_inherited_without_credentials(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    env = {
        "HTTPS_PROXY": "http://proxy.example:3128",
        "https_proxy": "me:word@proxy.example:3128",
        "HTTP_PROXY": "http://me@proxy.example",
        "all_proxy": "socks5h://127.0.0.1:1080",
        "NO_PROXY": "localhost,.example",
        "SSL_CERT_FILE": "ca.pem",
        "HF_HUB_DISABLE_SYMLINKS": "1",
    }
    assert job.inherited_environment(env) == {
        "HTTPS_PROXY": "http://proxy.example:3128",
        "all_proxy": "socks5h://127.0.0.1:1080",
        "NO_PROXY": "localhost,.example",
        "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
        "HF_HUB_DISABLE_SYMLINKS": "1",
    }
    assert job.proxies_with_credentials(env) == ["HTTP_PROXY", "https_proxy"]


@pytest.mark.parametrize("word", ["HTTPS_PROXY=me:word@proxy.example:3128", "all_proxy=socks5://me@proxy.example"])
def test_credentials_of_a_proxy_are_rejected(word):
    with pytest.raises(CliError, match=r"_(PROXY|proxy) contains credentials"):
        job.parse_env_options([word])


@pytest.mark.parametrize(
    "word", ["HF_TOKEN=x", "OPENAI_API_KEY=x", "MY_PASSWORD=x", "AWS_SECRET=x", "X=https://me:word@hub.example"]
)
def test_secrets_are_rejected(word):
    with pytest.raises(CliError, match="looks like a secret") as error:
        job.parse_env_options([word])
    assert "hf auth login" in error.value.hint


@pytest.mark.parametrize("word", ["X", "=x", "1X=x", "X Y=x", "X=a\nb", "X=a\0b", "OSAURUS_SUPERVISED=x"])
def test_invalid_assignments_are_rejected(word):
    with pytest.raises(CliError, match="--env"):
        job.parse_env_options([word])


def test_values_may_contain_any_other_text():
    assert job.parse_env_options(["X=a=b & c", "KEYBOARD=us", "Y="]) == {"X": "a=b & c", "KEYBOARD": "us", "Y": ""}
