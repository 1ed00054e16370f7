"""The documentation of GGUF files agrees with the code."""

from pathlib import Path

import pytest

from osaurusd.imports.worker import quantization
from osaurusd.imports.worker.families import FAMILIES
from osaurusd.imports.worker.family import Family

PAGE = (Path(__file__).parents[2] / "docs" / "gguf.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]


def documented_types() -> dict[str, str]:
    """Return how each type is stored, from the table."""
    start = next(index for index, row in enumerate(ROWS) if row[0] == "types in the file")
    return {name.strip(): row[1] for row in ROWS[start + 2 : start + 14] for name in row[0].split(",")}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_family_is_documented(family: Family) -> None:
    assert [family.title, f"`{family.architecture}`", f"`{family.model_type}`", family.float_type] in ROWS


def test_only_existing_families_are_documented() -> None:
    start = next(index for index, row in enumerate(ROWS) if row[0] == "family")
    assert len(FAMILIES) == len(ROWS[start + 2 :])


def test_every_quantization_is_documented() -> None:
    documented = documented_types()
    assert {"F32", "F16", "BF16", *quantization.TYPES} == set(documented)
    for name in quantization.TYPES:
        scheme = quantization.automatic_scheme(name)
        assert scheme is not None
        expected = "mxfp4" if scheme.mode == "mxfp4" else f"{scheme.bits} bits"
        assert expected in documented[name], name
        held = quantization.held_scheme(name) is not None
        exact = held and quantization.is_exact(name, scheme, "F16")
        assert held != documented[name].startswith("requantized"), name
        assert documented[name].endswith("exact") == exact, name
