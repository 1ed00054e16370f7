from typing import Any

import pytest

from osaurusd.models import vision

TOWER = {"vision_config": {"hidden_size": 8}}
FILES = {"config.json", "preprocessor_config.json"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "vision_available", lambda: True)
    monkeypatch.setattr(vision, "_is_implemented", lambda _: True)


@pytest.mark.parametrize("family", vision.FAMILIES, ids=lambda family: family.name)
def test_installed_mlx_vlm_implements_every_family(family: vision.Family) -> None:
    pytest.importorskip("mlx_vlm", reason="mlx-vlm is not installed")
    for architecture in family.architectures:
        assert vision.accepts_images({"model_type": architecture, **TOWER}, FILES)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("config", [{"model_type": "gemma4"}, {"model_type": "brand_new"}, {"model_type": 7}, {}])
def test_other_architectures_are_refused_by_name(config: dict[str, Any]) -> None:
    reason = vision.find_refusal({**config, **TOWER})
    assert reason is not None
    assert f"`{config.get('model_type')}`" in reason
    assert not vision.accepts_images({**config, **TOWER}, FILES)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "vision_available", lambda: False)
    config = {"model_type": "gemma3", **TOWER}
    assert vision.EXTRA in (vision.find_refusal(config) or "")
    assert vision.find_unsupported(config) is None


def test_old_mlx_vlm_without_the_family_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "vision_available", lambda: True)
    monkeypatch.setattr(vision, "find_spec", lambda _: None)
    assert "update it" in (vision.find_refusal({"model_type": "gemma3", **TOWER}) or "")


@pytest.mark.parametrize(
    ("config", "files"),
    [({"model_type": "gemma3"}, FILES), ({"model_type": "gemma3", **TOWER}, {"config.json"})],
    ids=["text model", "converted without its tower"],
)
def test_model_without_a_vision_tower_is_a_text_model(config: dict[str, Any], files: set[str]) -> None:
    assert not vision.is_vision_model(config, files)


def test_refused_architectures_are_not_supported_ones() -> None:
    assert not any(vision.find_family(architecture) for architecture in vision.REFUSED)
