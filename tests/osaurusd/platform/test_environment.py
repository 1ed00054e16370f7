"""Child processes that work on models see no secrets."""

import pytest

from osaurusd.platform import environment


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "OSAURUS_API_KEY", "AWS_SECRET_ACCESS_KEY"),
        *("HTTPS_PROXY", "http_proxy", "SSH_AUTH_SOCK", "DATABASE_URL", "GITHUB_TOKEN", "NOTIFY_SOCKET", "LISTEN_FDS"),
        *("XPYTHONPATH", "MY_MLX_KEY", "path"),
    ],
)
def test_secrets_and_unneeded_variables_are_not_passed_on(name):
    assert {} == environment.minimal({name: "secret"})


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONUNBUFFERED"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
        *("MLX_METAL_FAST_SYNCH", "CUDA_VISIBLE_DEVICES", "__CF_USER_TEXT_ENCODING"),
    ],
)
def test_variables_that_python_and_compute_libraries_need_are_passed_on(name):
    assert {name: "value"} == environment.minimal({name: "value"})


def test_settings_of_the_user_override_those_for_conversions():
    names = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "OPENBLAS_NUM_THREADS"}
    assert environment.converting({}).keys() == names
    assert environment.converting({"MALLOC_TRIM_THRESHOLD_": "1", "HF_TOKEN": "x"})["MALLOC_TRIM_THRESHOLD_"] == "1"
