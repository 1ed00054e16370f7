"""The page about models over several hosts agrees with the code."""

from pathlib import Path

from osaurusd.groups.families import families_table

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"


def test_documentation_has_the_table_of_architectures() -> None:
    assert "\n".join(families_table()) in PAGE.read_text()
