"""The configurations in the documentation, as tests run them."""

import re
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"


def recipe(heading: str, language: str, replacements: Mapping[str, str]) -> str:
    """Return a code block of `docs/scaling.md`.

    Args:
        heading: of the section, whose first block in this language is returned.
        language: of the block.
        replacements: what is different in the test, such as names of hosts. Each must occur.
    """
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    block = re.search(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert block is not None, f"no {language} block in {heading}"
    text = block[1]
    for old, new in replacements.items():
        assert old in text, f"{old!r} does not occur in the {language} block of {heading}"
        text = text.replace(old, new)
    return text
