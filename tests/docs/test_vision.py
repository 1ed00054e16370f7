"""The documentation of images agrees with the code."""

from pathlib import Path

from osaurusd.models import vision

PAGE = (Path(__file__).parents[2] / "docs" / "vision.md").read_text()


def test_table_of_families_is_generated() -> None:
    assert "\n".join(vision.families_table()) in PAGE


def test_extra_is_documented() -> None:
    assert f'uv tool install "{vision.EXTRA}"' in PAGE
