"""What mlx_lm can build is known without importing it."""

import json
import subprocess
import sys

import pytest

from osaurusd.models import architectures


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "openelm", "phi3", "lfm2-vl"])
def test_architectures_with_a_module_are_supported(model_type):
    assert model_type in architectures.supported()


@pytest.mark.parametrize("model_type", ["mistral", "qwen2_5_vl"])
def test_architectures_that_mlx_lm_builds_as_others_are_supported(model_type):
    assert not (architectures._package() / "models" / f"{model_type}.py").exists()
    assert model_type in architectures.supported()


@pytest.mark.parametrize("model_type", ["nonsense", "None", "", "__init__", "Llama", "llama.py", "../utils"])
def test_other_words_are_not_supported(model_type):
    assert model_type not in architectures.supported()


def test_nothing_of_mlx_is_imported():
    script = """
import json, sys
from osaurusd.models import architectures, catalog
from osaurusd.imports import manager
found = sorted(architectures.supported())
heavy = {"mlx", "mlx_lm", "transformers", "numpy", "tokenizers", "huggingface_hub"}
print(json.dumps([found, sorted(heavy & {name.partition(".")[0] for name in sys.modules})]))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found, imported = json.loads(run.stdout)
    assert set(found) == architectures.supported()
    assert imported == []


def test_without_mlx_lm_nothing_is_supported(monkeypatch):
    monkeypatch.setattr(architectures, "find_spec", lambda name: None)
    assert architectures.supported.__wrapped__() == frozenset()


def test_without_a_table_the_modules_still_count(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    (tmp_path / "models" / "llama.py").write_text("raise RuntimeError('never run')\nclass ModelArgs: ...\n")
    (tmp_path / "models" / "cache.py").write_text("class BaseModelArgs: ...\n")
    (tmp_path / "utils.py").write_text("raise RuntimeError('never run')")
    monkeypatch.setattr(architectures, "_package", lambda: tmp_path)
    assert architectures.supported.__wrapped__() == {"llama"}


def test_other_names_of_modules_that_are_not_there_do_not_count(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama.py").write_text("class ModelArgs: ...\n")
    (tmp_path / "utils.py").write_text('MODEL_REMAPPING = {"mistral": "llama", "old": "gone"}\n')
    monkeypatch.setattr(architectures, "_package", lambda: tmp_path)
    assert architectures.supported.__wrapped__() == {"llama", "mistral"}
