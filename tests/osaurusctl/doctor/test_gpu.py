"""The check of an NVIDIA GPU, with a stand-in for nvidia-smi and packages as pip installs them."""

import os
import sys

import pytest

from osaurusctl.doctor import gpu
from osaurusctl.doctor.check import Verdict

H100 = "NVIDIA H100 80GB HBM3, 580.95.05, 9.0"
WANTED = "--query-gpu=name,driver_version,compute_cap --format=csv,noheader"


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Run the check on a machine with this output of nvidia-smi and these packages: name to size of the library."""

    def check(output, on_disk=100, code=0, **packages):
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\n[ "$*" = "{WANTED}" ] || exit 9\necho "{output}"\nexit {code}\n')
        program.chmod(0o700)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(sys, "platform", "linux")
        library = tmp_path / "site" / "mlx" / "lib" / "libmlx.so"
        library.parent.mkdir(parents=True, exist_ok=True)
        library.write_bytes(bytes(on_disk))
        for name, size in packages.items():
            info = tmp_path / "site" / f"{name}-0.32.4.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.32.4\n")
            (info / "RECORD").write_text(f"mlx/lib/libmlx.so,sha256=x,{size}\n{info.name}/METADATA,,\n")
        monkeypatch.syspath_prepend(tmp_path / "site")
        return list(gpu.check_gpu(None))

    return check


@pytest.mark.parametrize(
    ("output", "extra"),
    [
        (H100, "cuda13"),
        ("NVIDIA A10G, 550.54.14, 8.6", "cuda12"),
        ("Tesla T4, 570.1, 7.5\nTesla T4, 570.1, 7.5", "cuda12"),
    ],
)
def test_unused_gpu_is_a_warning_with_the_extra_to_install(check, output, extra):
    (found,) = check(output)

    assert Verdict.WARNING is found.verdict
    assert "not used" in found.detail
    assert f"osaurusd[{extra}]" in found.fix


@pytest.mark.parametrize("output", ["Tesla V100, 580.1, 7.0", "NVIDIA A10G, 535.104.05, 8.6"])
def test_old_gpu_or_driver_is_not_supported(check, output):
    (found,) = check(output)

    assert Verdict.WARNING is found.verdict
    assert "not supported" in found.detail


def test_used_gpu_is_reported(check):
    (found,) = check(H100, on_disk=300, mlx_cuda_13=300, mlx_cpu=100)

    assert Verdict.OK is found.verdict
    assert "NVIDIA H100" in found.detail
    assert "mlx-cuda-13" in found.detail


def test_library_that_mlx_cpu_has_replaced_is_a_failure(check):
    """pip installs both packages, in an order that it does not promise."""
    (found,) = check(H100, on_disk=100, mlx_cuda_12=300, mlx_cpu=100)

    assert Verdict.FAILURE is found.verdict
    assert "--force-reinstall --no-deps mlx-cuda-12==0.32.4" in found.fix


def test_environment_without_pip_is_repaired_with_uv(check, monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)

    (found,) = check(H100, on_disk=100, mlx_cuda_13=300, mlx_cpu=100)

    assert f"uv pip install --python {sys.executable} --force-reinstall --no-deps mlx-cuda-13==" in found.fix


def test_driver_that_is_too_old_for_the_installed_cuda_is_a_failure(check):
    (found,) = check("NVIDIA A10G, 560.1, 8.6", on_disk=300, mlx_cuda_13=300)

    assert Verdict.FAILURE is found.verdict
    assert "osaurusd[cuda12]" in found.fix


@pytest.mark.parametrize(("output", "code"), [("NVIDIA-SMI has failed", 9), ("", 0), ("No devices were found", 6)])
def test_machine_without_a_working_gpu_is_not_checked(check, output, code):
    assert [] == check(output, code=code)


def test_machine_without_nvidia_smi_is_not_checked(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")

    assert [] == list(gpu.check_gpu(None))
