"""The package uses no private attributes of other objects, in particular none of its dependencies."""

import ast
import functools
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import osaurusctl
import osaurusd

PACKAGES = (Path(osaurusd.__file__).parent, Path(osaurusctl.__file__).parent)

ALLOWED: frozenset[tuple[str, str]] = frozenset()
"""Pairs of a file and an attribute. Each needs a comment in the code that says what breaks, and a test that notices."""

BY_NAME = frozenset({"getattr", "setattr", "hasattr", "delattr", "attrgetter", "methodcaller"})

STANDARD_LIBRARY = frozenset({"_exit"})
"""Documented functions of the standard library: `os._exit`."""


@functools.lru_cache(maxsize=1)
def nodes_of(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


def private_accesses(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and name of every private attribute that is used but not defined by a class of the same module."""
    nodes = nodes_of(source)
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and is_private(node.attr)]
    own = {node.attr for node in attributes if is_own(node.value)}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in attributes:
        if node.attr not in own:
            yield node.lineno, node.attr


def hidden_accesses(source: str) -> Iterator[tuple[int, str]]:
    """Yield private names that are imported, or that `getattr`, `setattr` and the like get as text."""
    for node in nodes_of(source):
        match node:
            case ast.Import(names=aliases):
                names = [part for alias in aliases for part in alias.name.split(".")]
            case ast.ImportFrom(module=module, names=aliases):
                names = [*(module or "").split("."), *(alias.name for alias in aliases)]
            case ast.Call(func=ast.Name(id=function), args=arguments) if function in BY_NAME:
                texts = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
                names = [part for text in texts if isinstance(text, str) for part in text.split(".")]
            case _:
                continue
        yield from ((node.lineno, name) for name in names if is_private(name))


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
        for source in [path.read_text(encoding="utf-8")]
        for find in (private_accesses, hidden_accesses)
        for line, name in find(source)
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


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from aiohttp import _websocket", ["_websocket"]),
        ("from mlx_lm._generate import generate", ["_generate"]),
        ("import aiohttp._http_parser", ["_http_parser"]),
        ("getattr(request, '_payload', None)", ["_payload"]),
        ("attrgetter('protocol._waiter')", ["_waiter"]),
        ("from __future__ import annotations; from . import x; getattr(a, '__name__'); getattr(a, name)", []),
    ],
)
def test_hidden_accesses_are_found(source: str, names: list[str]) -> None:
    assert [name for _, name in hidden_accesses(source)] == names


def test_no_class_overrides_a_private_method_of_another_package() -> None:
    # Workers are left out: importing MLX takes seconds, and their classes have no bases in other packages but modules.
    modules = [
        importlib.import_module(module.name)
        for package in (osaurusd, osaurusctl)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not {"worker", "__main__"} & {*module.name.split(".")}
    ]
    classes = {cls for module in modules for cls in vars(module).values() if isinstance(cls, type)}
    overridden = [
        f"{cls.__module__}.{cls.__qualname__}.{name}"
        for cls in classes
        if is_ours(cls)
        for base in cls.__mro__[1:]
        if not is_ours(base)
        for name, value in vars(cls).items()
        if is_private(name) and name in vars(base) and getattr(value, "__module__", None) == cls.__module__
    ]
    assert overridden == []


def is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("osaurusd", "osaurusctl")
