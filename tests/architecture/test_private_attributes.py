"""The package uses no private attributes of other objects, in particular none of its dependencies."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import osaurusctl
import osaurusd

PACKAGES = (Path(osaurusd.__file__).parent, Path(osaurusctl.__file__).parent)

ALLOWED = frozenset(
    {
        ("osaurusd/worker/engine/caches.py", "_idx"),
        ("osaurusd/worker/engine/lane.py", "_as_merged"),
        ("osaurusd/worker/engine/lane.py", "_scores"),
        ("osaurusd/worker/engine/lane.py", "_tokens"),
        ("osaurusd/worker/frontend/constraint.py", "_tail"),
    }
)
"""Pairs of a file and an attribute. Each needs a comment in the code that says what breaks, and a test that notices."""

STANDARD_LIBRARY = frozenset({"_exit"})
"""Documented functions of the standard library: `os._exit`."""


def private_accesses(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and name of every private attribute that is read or set on an object other than self or cls."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node.value):
            yield node.lineno, node.attr


def is_private(name: str) -> bool:
    if name in STANDARD_LIBRARY:
        return False
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def is_own(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_private_attribute_of_another_object_is_used(package: Path) -> None:
    accesses = [
        f"{path.relative_to(package.parent)}:{line} {name}"
        for path in sorted(package.rglob("*.py"))
        for line, name in private_accesses(path.read_text(encoding="utf-8"))
        if (str(path.relative_to(package.parent)), name) not in ALLOWED
    ]
    assert accesses == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("request._payload", ["_payload"]),
        ("request.protocol._waiter.done()", ["_waiter"]),
        ("make()._x = 1", ["_x"]),
        ("self._x; cls._y; super()._z; a.__class__; a.b", []),
        ("self.other._x", ["_x"]),
    ],
)
def test_private_accesses_are_found(source: str, names: list[str]) -> None:
    assert [name for _, name in private_accesses(source)] == names
