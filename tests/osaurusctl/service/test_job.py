"""What the service is given of the installing shell's environment, and what it is not."""

import pytest

from osaurusctl.errors import CliError
from osaurusctl.service import job
from osaurusd.config import ENVIRONMENT


def test_every_variable_that_overrides_the_configuration_is_carried():
    assert set(job.OVERRIDES) == set(ENVIRONMENT)


def test_what_decides_where_files_lie_is_carried_as_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/Users/me")
    found = job.carried(
        {"OSAURUS_HOME": "here", "HF_HOME": "~/hf", "XDG_DATA_HOME": "", "EDITOR": "vi", "HF_TOKEN": "x"}
    )
    assert found == {"OSAURUS_HOME": str(tmp_path / "here"), "HF_HOME": "/Users/me/hf"}


@pytest.mark.parametrize(
    "word", ["HF_TOKEN=x", "OPENAI_API_KEY=x", "MY_PASSWORD=x", "AWS_SECRET=x", "X=https://me:word@hub.example"]
)
def test_secrets_are_refused_with_the_place_where_they_belong(word):
    with pytest.raises(CliError, match="looks like a secret") as error:
        job.given([word])
    assert "hf auth login" in error.value.hint


@pytest.mark.parametrize("word", ["X", "=x", "1X=x", "X Y=x", "X=a\nb", "X=a\0b", "OSAURUS_SUPERVISED=x"])
def test_what_is_no_assignment_is_refused(word):
    with pytest.raises(CliError, match="--env"):
        job.given([word])


def test_values_may_hold_anything_else():
    assert job.given(["X=a=b & c", "KEYBOARD=us", "Y="]) == {"X": "a=b & c", "KEYBOARD": "us", "Y": ""}
