"""Counting, and Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """One line: what is added to the family's name, labels by name, and the value."""

    suffix: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Family(Protocol):
    """A metric with all its label values."""

    @property
    def name(self) -> str: ...

    @property
    def help(self) -> str: ...

    @property
    def kind(self) -> Literal["counter", "gauge", "histogram"]: ...

    def samples(self) -> Iterable[Sample]: ...


@dataclass
class Counter:
    """Only grows. `labels` are the names of its labels; its name ends in `_total`."""

    name: str
    help: str
    labels: Labels = ()
    kind: Literal["counter"] = "counter"
    values: dict[Labels, float] = field(default_factory=dict)

    def add(self, amount: float, *labels: str) -> None:
        self.values[labels] = self.values.get(labels, 0) + amount

    def samples(self) -> Iterator[Sample]:
        for labels, value in self.values.items():
            yield Sample("", tuple(zip(self.labels, labels, strict=True)), value)


@dataclass
class Gauge:
    """Goes up and down: what `read` yields when it is asked for, by label values."""

    name: str
    help: str
    labels: Labels
    read: Callable[[], Iterable[tuple[Labels, float]]]
    kind: Literal["gauge"] = "gauge"

    def samples(self) -> Iterator[Sample]:
        for labels, value in self.read():
            yield Sample("", tuple(zip(self.labels, labels, strict=True)), value)


@dataclass
class Histogram:
    """How often values fell below each of the `bounds`, in rising order."""

    name: str
    help: str
    labels: Labels
    bounds: Sequence[float]
    kind: Literal["histogram"] = "histogram"
    _counts: dict[Labels, list[int]] = field(default_factory=dict)
    _sums: dict[Labels, float] = field(default_factory=dict)

    def observe(self, value: float, *labels: str) -> None:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self.bounds) + 1)
        counts[bisect.bisect_left(self.bounds, value)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + value

    def samples(self) -> Iterator[Sample]:
        for labels, counts in self._counts.items():
            named = tuple(zip(self.labels, labels, strict=True))
            below = 0
            for bound, count in zip([*self.bounds, math.inf], counts, strict=True):
                below += count
                yield Sample("_bucket", (*named, ("le", _number(bound))), below)
            yield Sample("_sum", named, self._sums[labels])
            yield Sample("_count", named, below)


def render(families: Iterable[Family]) -> bytes:
    """All families as text."""
    return "".join(line for family in families for line in _lines(family)).encode()


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {_escaped(family.help)}\n"
    yield f"# TYPE {family.name} {family.kind}\n"
    for sample in family.samples():
        labels = ",".join(f'{name}="{_quoted(value)}"' for name, value in sample.labels)
        yield f"{family.name}{sample.suffix}{f'{{{labels}}}' if labels else ''} {_number(sample.value)}\n"


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(value)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', r"\"")
