"""Whatever is listed as available loads, and whatever mlx_lm loads is listed."""

import glob
import shutil
from pathlib import Path

import mlx_lm
import pytest
from huggingface_hub import constants

from osaurusd.models.scan import Scanner
from osaurusd.rpc import messages
from osaurusd.wire.admin import Availability
from osaurusd.worker.runners.loading import load_model_folder

from .layouts import TEXT, Generator, Layout, Parts


@pytest.fixture(scope="module")
def parts():
    return Parts()


def encode(tokenizer):
    """Return the tokens of a text, or None if they do not represent it."""
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    return tokens if TEXT.split()[0] in tokenizer.decode(tokens) else None


def load_with_mlx_lm(layout: Layout, monkeypatch):
    """Return the tokens of a text if mlx_lm loads the model whatever the order of the directory is, or else None."""
    # The order matters only if several files contain weights.
    orders = (False, True) if len([*layout.path.glob("model*.safetensors")]) > 1 else (False,)
    with monkeypatch.context() as patched:
        patched.setattr(constants, "HF_HUB_CACHE", str(layout.root.path))
        patched.setattr(constants, "HF_HUB_OFFLINE", True)
        loaded = [load_in_order(layout, patched, descending) for descending in orders]
    return loaded[0] if None not in loaded else None


def load_in_order(layout: Layout, monkeypatch, descending):
    find = glob.glob
    monkeypatch.setattr(glob, "glob", lambda *args, **options: sorted(find(*args, **options), reverse=descending))
    try:
        return encode(mlx_lm.load(layout.repo or str(layout.path))[1])
    except Exception:  # noqa: BLE001  mlx_lm and transformers raise whatever they meet
        return None


def load_as_listed(record):
    frame = messages.Load(path=str(record.path), context_length=record.context_length)
    return encode(load_model_folder(frame).tokenizer)


def check(layout: Layout, monkeypatch):
    """Return what is wrong, or None."""
    records = Scanner(layout.root).scan()
    expected = load_with_mlx_lm(layout, monkeypatch)
    available = [record for record in records if record.state is Availability.AVAILABLE]
    if available:
        try:
            tokens = load_as_listed(available[0])
        except Exception as error:  # noqa: BLE001  reported with the layout
            return f"listed, but does not load: {type(error).__name__}: {error}"
        if tokens is None:
            return "listed, but its tokenizer is unusable"
        if expected is not None and tokens != expected:
            return "tokenized differently"
    elif expected is not None and not any(record.escapes for record in records):
        return f"mlx_lm loads it, but it is not listed: {[record.reason for record in records]}"
    return None


def run(parts, folder: Path, monkeypatch, seed: int, count: int):
    generator = Generator(parts, seed)
    wrong = []
    for number in range(count):
        store = folder / str(number)
        store.mkdir()
        layout = generator.create(store)
        if problem := check(layout, monkeypatch):
            wrong.append(f"{number}: {layout}: {problem}")
        shutil.rmtree(store)
    return wrong


def test_listed_models_load_and_models_that_mlx_lm_loads_are_listed(parts, tmp_path, monkeypatch):
    assert run(parts, tmp_path, monkeypatch, seed=14, count=60) == []


@pytest.mark.long
def test_many_more_layouts(parts, tmp_path, monkeypatch):
    assert run(parts, tmp_path, monkeypatch, seed=2, count=3000) == []
