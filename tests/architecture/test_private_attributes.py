"""The package uses no private attributes of other objects, in particular none of its dependencies."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import osaurusctl
import osaurusd

PACKAGES = (Path(osaurusd.__file__).parent, Path(osaurusctl.__file__).parent)

ALLOWED: frozenset[tuple[str, str]] = frozenset()
"""Pairs of a file and an attribute. Each needs a comment in the code that says what breaks, and a test that notices."""

STANDARD_LIBRARY = frozenset({"_exit"})
"""Documented functions of the standard library: `os._exit`."""


def private_accesses(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and name of every private attribute that is used but not defined by a class of the same module."""
    tree = ast.parse(source)
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)]
    own = {node.attr for node in attributes if is_own(node.value)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in attributes:
        if node.attr not in own:
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
        ("self._x = 1; other._x", []),
    ],
)
def test_private_accesses_are_found(source: str, names: list[str]) -> None:
    assert [name for _, name in private_accesses(source)] == names
