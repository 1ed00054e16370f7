"""The tables of architectures agree with the installed mlx_lm."""

import importlib
import inspect
import re
from pathlib import Path

import mlx_lm
import pytest
from mlx_lm.models.pipeline import PipelineMixin
from mlx_lm.utils import MODEL_REMAPPING

from osaurusd.groups.families import FAMILIES, NOT_OFFERED
from osaurusd.models.compatibility import supported_architectures

MODELS = Path(mlx_lm.__file__).parent / "models"
SHARD = re.compile(r"^    def shard\(", re.MULTILINE)


def module_of(architecture):
    return MODEL_REMAPPING.get(architecture, architecture)


def implements_pipeline(module):
    """Whether the model of a module, or the class that it extends, contains layers of a pipeline."""
    sources = [importlib.import_module(base.__module__) for base in module.Model.__mro__ if "mlx_lm" in base.__module__]
    classes = (each for source in sources for each in vars(source).values() if inspect.isclass(each))
    return any(issubclass(each, PipelineMixin) and each is not PipelineMixin for each in classes)


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_mlx_lm_implements_every_offered_split(architecture):
    module = importlib.import_module(f"mlx_lm.models.{module_of(architecture)}")
    splits = FAMILIES[architecture].splits

    assert hasattr(module.Model, "shard") == ("tensor" in splits)
    assert implements_pipeline(module) == ("pipeline" in splits)


def test_every_architecture_that_mlx_lm_can_divide_is_offered_or_left_out_on_purpose():
    sources = {path.stem: path.read_text() for path in MODELS.glob("*.py")}
    divided = {name for name, source in sources.items() if SHARD.search(source) or "PipelineMixin" in source}
    architectures = {name for name in supported_architectures() if module_of(name) in divided}

    assert architectures <= FAMILIES.keys() | NOT_OFFERED
    assert not FAMILIES.keys() & NOT_OFFERED
    assert FAMILIES.keys() | NOT_OFFERED <= supported_architectures()
