"""The repository uses the standard terms of its field; see CONTRIBUTING.md."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Words for people that do not fit processes and requests, and literal translations of idioms.
BANNED = (
    r"alike",
    r"amiss",
    r"antechamber\w*",
    r"anybody",
    r"everybody",
    r"farewell\w*",
    r"goodbye",
    r"lately",
    r"mend(?:s|ed|ing)?",
    r"nobody",
    r"reckon(?:s|ed|ing)?",
    r"somebody",
    r"vandals?",
    r"whoever",
    r"whom",
    r"whosoever",
    r"how-manieth",
    r"last words",
    r"of its own accord",
    r"of no use",
    r"what is there",
    r"not to be had",
    r"is told",
    r"are told",
)
PATTERN = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)

# Files whose text is data or defines the rule.
ALLOWED = {"tests/architecture/test_language.py"}


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "*.py", "*.md", "*.toml", "*.yml", "*.plist", "*.sh", "Makefile", ".ci"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in output.split("\0") if name and name not in ALLOWED]


def words(line: str) -> str:
    """The line with identifiers split into words."""
    return re.sub(r"_+|(?<=[a-z])(?=[A-Z])", " ", line)


def test_no_file_uses_a_banned_word() -> None:
    violations = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in tracked_files()
        if path.exists()
        for text in [path.read_text(encoding="utf-8")]
        if PATTERN.search(words(text))  # all lines at once, since there is usually nothing to find
        for number, line in enumerate(text.splitlines(), start=1)
        for match in PATTERN.finditer(words(line))
    ]

    assert [] == violations


def test_no_error_shows_a_value_as_a_python_literal() -> None:
    # This module's errors are those of Python's own import.
    allowed = ROOT / "osaurusd/worker/lean_imports.py"
    paths = [path for path in tracked_files() if path.suffix == ".py" and path != allowed and path.exists()]
    packages = [path for path in paths if path.relative_to(ROOT).parts[0] in ("osaurusd", "osaurusctl")]
    violations = [str(path.relative_to(ROOT)) for path in packages if "!r}" in path.read_text(encoding="utf-8")]

    assert [] == violations, "use `as_json`"
    assert packages
