"""The results, and their report as JSON and as a table: medians, ratios, goals and verdicts."""

import itertools
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.bench.figures import OURS, PROGRAMS, SECTIONS, Figure, Goal

HEADER = ("figure", "unit", "ours", "other", "ratio", "min", "max", "goal", "verdict")

MAX_BUSY = 0.05
"""The share of processor time that other programs may use without a warning."""


@dataclass
class Results:
    """The values of all runs by model, measurement, program and figure.

    The nth values of two programs were measured directly after each other. `busy` are the shares of processor time that
    other programs used just before each run. `failures` are the reasons for failures, by model and measurement.
    """

    runs: dict[tuple[str, str, str, str], list[float]] = field(default_factory=dict)
    busy: list[float] = field(default_factory=list)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, model: str, measurement: str, program: str, figures: dict[str, float]) -> None:
        for figure, value in figures.items():
            self.runs.setdefault((model, measurement, program, figure), []).append(value)

    def fail(self, model: str, measurement: str, reason: str) -> None:
        """Record a failure and discard the measurement's earlier values."""
        self.failures[model, measurement] = reason
        for key in [key for key in self.runs if key[:2] == (model, measurement)]:
            del self.runs[key]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    `ours` and `other` are the medians of `ours_runs` and `other_runs`. `ratio` is the median of `ratios`; each ratio is
    of two values measured directly after each other, so that disturbances of both cancel out. `met` refers to the
    medians; `runs_met` counts the runs that meet the goals.
    """

    model: str
    figure: str
    unit: str
    ours: float
    other: float | None
    other_program: str | None
    ratio: float | None
    goal: str
    met: bool | None
    runs_met: int | None
    ratios: list[float]
    ours_runs: list[float]
    other_runs: list[float]

    def cells(self) -> tuple[str, ...]:
        extremes = (min(self.ratios), max(self.ratios)) if self.ratios else (None, None)
        numbers = map(format_number, (self.ours, self.other, self.ratio, *extremes))
        return (self.figure, self.unit, *numbers, self.goal, self._verdict())

    def _verdict(self) -> str:
        if self.met is None:
            return ""
        return f"{'met' if self.met else 'MISSED'} ({self.runs_met} of {len(self.ours_runs)} runs)"


def build(results: Results) -> dict[str, Any]:
    """Return the report as a JSON document, with the values of all runs."""
    failures = [
        {"model": model, "measurement": measurement, "reason": reason}
        for (model, measurement), reason in results.failures.items()
    ]
    rows = [asdict(row) for row in build_rows(results)]
    return {"rows": rows, "not_measured": failures, "busy": median_busy(results)}


def render(results: Results) -> str:
    """Return the report as text: a table per model, then failures and warnings."""
    rows = build_rows(results)
    lines: list[tuple[str, ...]] = []
    for model in SECTIONS:
        cells = [row.cells() for row in rows if row.model == model]
        lines += [(), (model,), HEADER, *cells] if cells else []
    widths = (
        [max(len(line[column]) for line in lines if len(line) > 1) for column in range(len(HEADER))] if lines else []
    )
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines]
    if results.failures:
        text += ["", "not measured:"]
        text += [f"{model}, {measurement}: {reason}" for (model, measurement), reason in results.failures.items()]
    if median_busy(results) > MAX_BUSY:
        text += [
            "",
            f"WARNING: other programs used {median_busy(results):.0%} of the processor time between runs "
            f"(up to {max(results.busy):.0%}). Trust only verdicts that hold for all runs.",
        ]
    return "\n".join(text).strip("\n")


def build_rows(results: Results) -> list[Row]:
    """Return a row for each measured figure."""
    rows = (build_row(model, figure, results) for model, figures in SECTIONS.items() for figure in figures)
    return [row for row in rows if row is not None]


def build_row(model: str, figure: Figure, results: Results) -> Row | None:
    ours_runs = results.runs.get((model, figure.measurement, OURS, figure.name))
    if not ours_runs:
        return None
    other_key = (model, figure.measurement, figure.program or "", figure.other_name or figure.name)
    other_runs = results.runs.get(other_key, [])
    ours = statistics.median(ours_runs)
    ratios = [mine / other for mine, other in zip(ours_runs, other_runs, strict=False)]
    ratio = statistics.median(ratios) if ratios else None
    goals = figure.goals.get(model, ())
    return Row(
        model=model,
        figure=figure.label,
        unit=figure.unit,
        ours=ours,
        other=statistics.median(other_runs) if other_runs else None,
        other_program=PROGRAMS.get(figure.program or ""),
        ratio=ratio,
        goal=", ".join(map(str, goals)),
        met=all(goal.is_met(ours, ratio) for goal in goals) if goals else None,
        runs_met=count_runs_met(goals, ours_runs, ratios) if goals else None,
        ratios=ratios,
        ours_runs=ours_runs,
        other_runs=other_runs,
    )


def count_runs_met(goals: tuple[Goal, ...], ours: list[float], ratios: list[float]) -> int:
    runs = itertools.zip_longest(ours, ratios)
    return sum(all(goal.is_met(value, ratio) for goal in goals) for value, ratio in runs)


def median_busy(results: Results) -> float:
    return statistics.median(results.busy) if results.busy else 0.0


def format_number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"
