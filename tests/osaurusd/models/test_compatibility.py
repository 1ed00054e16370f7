import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from osaurusd.models import compatibility, vision
from osaurusd.models.compatibility import architectures_in, supported_architectures


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "openelm", "phi3", "lfm2-vl"])
def test_architectures_with_a_module_are_supported(model_type):
    assert model_type in supported_architectures()


@pytest.mark.parametrize("model_type", ["mistral", "qwen2_5_vl"])
def test_remapped_architectures_are_supported(model_type):
    package = Path(find_spec("mlx_lm").origin).parent

    assert not (package / "models" / f"{model_type}.py").exists()
    assert model_type in supported_architectures()


@pytest.mark.parametrize("model_type", ["nonsense", "None", "", "__init__", "Llama", "llama.py", "../utils"])
def test_other_names_are_not_supported(model_type):
    assert model_type not in supported_architectures()


def test_the_daemon_does_not_import_mlx_to_know_them():
    script = """
import json, sys
from osaurusd.models import catalog, compatibility
from osaurusd.imports import manager
supported = sorted(compatibility.supported_architectures())
heavy = {"mlx", "mlx_lm", "transformers", "numpy", "tokenizers", "huggingface_hub"}
print(json.dumps([supported, sorted(heavy & {name.partition(".")[0] for name in sys.modules})]))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    supported, imported = json.loads(run.stdout)

    assert set(supported) == supported_architectures()
    assert imported == []


PROCESSOR = ("tokenizer.json", "processor_config.json")


@pytest.mark.parametrize(
    ("architecture", "files", "available", "reason"),
    [
        ("smolvlm", PROCESSOR, True, None),
        ("smolvlm", PROCESSOR, False, r"mlx_lm does not support its text part, and images need the extra `vision`"),
        ("smolvlm", PROCESSOR[:1], True, "mlx_lm does not support the architecture `smolvlm`"),
        ("glm4v", PROCESSOR, True, "images of the architecture `glm4v` are not supported"),
        ("gemma3", PROCESSOR, False, None),
    ],
)
def test_vision_language_model_needs_a_supported_family_or_text_part(
    monkeypatch, architecture, files, available, reason
):
    monkeypatch.setattr(vision, "vision_available", lambda: available)
    monkeypatch.setattr(vision, "_is_implemented", lambda name: True)
    monkeypatch.setattr(compatibility, "supported_architectures", lambda: {"gemma3", "llama"})
    found = compatibility.find_incompatibility({"model_type": architecture, "vision_config": {}}, files, {})

    assert found is reason is None or reason in found


@pytest.mark.parametrize(
    ("architecture", "expected"), [("smolvlm", "yes"), ("gemma3", "yes"), ("gemma4", "no"), ("x", "unsupported")]
)
def test_support_of_images_is_known_before_a_download(monkeypatch, architecture, expected):
    monkeypatch.setattr(compatibility, "supported_architectures", lambda: {"gemma3", "gemma4"})

    assert expected == compatibility.support_of_images(architecture)


def test_nothing_is_supported_without_mlx_lm(monkeypatch):
    monkeypatch.setattr(compatibility, "find_spec", lambda name: None)

    assert supported_architectures.__wrapped__() == frozenset()


def write_package(path, modules, utils):
    (path / "models").mkdir()
    for name, source in modules.items():
        (path / "models" / f"{name}.py").write_text(source)
    (path / "utils.py").write_text(utils)
    return path


def test_only_modules_with_a_model_class_count_and_none_is_executed(tmp_path):
    package = write_package(
        tmp_path,
        {
            "__init__": "",
            "llama": "raise RuntimeError('executed')\nclass ModelArgs: ...\n",
            "cache": "class BaseModelArgs: ...\n",
        },
        utils="raise RuntimeError('executed')",
    )

    assert architectures_in(package) == {"llama"}


def test_names_that_are_remapped_to_missing_modules_do_not_count(tmp_path):
    package = write_package(
        tmp_path,
        {"llama": "class ModelArgs: ...\n"},
        utils='MODEL_REMAPPING = {"mistral": "llama", "old": "removed"}\n',
    )

    assert architectures_in(package) == {"llama", "mistral"}
