"""The table: medians, ratios, aims and verdicts; for people and as JSON."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.figures import OURS, PARTIES, SECTIONS, Figure
from tests.bench.results import Results

HEADER = ("figure", "unit", "ours", "other", "ratio", "aim", "verdict")


@dataclass(frozen=True)
class Row:
    """A line of the table. `ours` and `other` are medians of `ours_runs` and `other_runs`."""

    model: str
    figure: str
    unit: str
    ours: float
    other: float | None
    other_is: str | None
    ratio: float | None
    aim: str
    met: bool | None
    ours_runs: list[float]
    other_runs: list[float]

    def cells(self) -> tuple[str, ...]:
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        numbers = (_number(self.ours), _number(self.other), _number(self.ratio))
        return (self.figure, self.unit, *numbers, self.aim, verdict)


def rows(results: Results) -> list[Row]:
    """A row for each figure that was measured."""
    made = (_row(model, figure, results) for model, figures in SECTIONS.items() for figure in figures)
    return [row for row in made if row is not None]


def render(results: Results) -> str:
    """The table as text, a section a model, with what could not be measured below."""
    table = rows(results)
    lines: list[tuple[str, ...]] = []
    for model in SECTIONS:
        of_model = [row.cells() for row in table if row.model == model]
        lines += [(), (model,), HEADER, *of_model] if of_model else []
    widths = [max(len(line[at]) for line in lines if len(line) > 1) for at in range(len(HEADER))] if lines else []
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines]
    notes = [f"{model}, {part}: {reason}" for (model, part), reason in results.failures.items()]
    return "\n".join([*text, *(["", "not measured:", *notes] if notes else [])]).strip("\n")


def document(results: Results) -> dict[str, Any]:
    """The table as a JSON document, with the values of every round."""
    failures = [{"model": model, "part": part, "reason": why} for (model, part), why in results.failures.items()]
    return {"rows": [asdict(row) for row in rows(results)], "not_measured": failures}


def _row(model: str, figure: Figure, results: Results) -> Row | None:
    ours_runs = results.runs.get((model, figure.part, OURS, figure.name))
    if not ours_runs:
        return None
    other_runs = results.runs.get((model, figure.part, figure.party or "", figure.other or figure.name), [])
    ours = statistics.median(ours_runs)
    other = statistics.median(other_runs) if other_runs else None
    ratio = ours / other if other else None
    aims = figure.aims.get(model, ())
    return Row(
        model=model,
        figure=figure.label,
        unit=figure.unit,
        ours=ours,
        other=other,
        other_is=PARTIES.get(figure.party or ""),
        ratio=ratio,
        aim=", ".join(map(str, aims)),
        met=all(aim.met(ours, ratio) for aim in aims) if aims else None,
        ours_runs=ours_runs,
        other_runs=other_runs,
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"
