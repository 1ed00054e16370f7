"""The table: medians, ratios, aims and verdicts; for people and as JSON."""

import itertools
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.figures import OURS, PARTIES, SECTIONS, Aim, Figure
from tests.bench.results import Results

HEADER = ("figure", "unit", "ours", "other", "ratio", "lowest", "highest", "aim", "verdict")

QUIET = 0.05
"""The share of the processors that other programs may take without a warning."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    `ours` and `other` are medians of `ours_runs` and `other_runs`; `ratio` is the median of `ratios`, each of two
    values that were measured one after the other, so that what slows both down cancels out. `met` goes by the medians,
    `turns_met` counts the turns that meet the aim.
    """

    model: str
    figure: str
    unit: str
    ours: float
    other: float | None
    other_is: str | None
    ratio: float | None
    aim: str
    met: bool | None
    turns_met: int | None
    ratios: list[float]
    ours_runs: list[float]
    other_runs: list[float]

    def cells(self) -> tuple[str, ...]:
        ends = (min(self.ratios), max(self.ratios)) if self.ratios else (None, None)
        numbers = map(_number, (self.ours, self.other, self.ratio, *ends))
        return (self.figure, self.unit, *numbers, self.aim, self._verdict())

    def _verdict(self) -> str:
        if self.met is None:
            return ""
        return f"{'met' if self.met else 'MISSED'} ({self.turns_met} of {len(self.ours_runs)} turns)"


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
    unquiet = [_warning(results)] if _busy(results) > QUIET else []
    return "\n".join([*text, *(["", "not measured:", *notes] if notes else []), *unquiet]).strip("\n")


def document(results: Results) -> dict[str, Any]:
    """The table as a JSON document, with the values of every round."""
    failures = [{"model": model, "part": part, "reason": why} for (model, part), why in results.failures.items()]
    return {"rows": [asdict(row) for row in rows(results)], "not_measured": failures, "busy": _busy(results)}


def _busy(results: Results) -> float:
    return statistics.median(results.busy) if results.busy else 0.0


def _warning(results: Results) -> str:
    return (
        f"\nNOT A QUIET MACHINE: other programs took {_busy(results):.0%} of the processors between the turns "
        f"(up to {max(results.busy):.0%}). No verdict holds that some turns do not share."
    )


def _row(model: str, figure: Figure, results: Results) -> Row | None:
    ours_runs = results.runs.get((model, figure.part, OURS, figure.name))
    if not ours_runs:
        return None
    other_runs = results.runs.get((model, figure.part, figure.party or "", figure.other or figure.name), [])
    ours = statistics.median(ours_runs)
    ratios = [mine / other for mine, other in zip(ours_runs, other_runs, strict=False)]
    ratio = statistics.median(ratios) if ratios else None
    aims = figure.aims.get(model, ())
    return Row(
        model=model,
        figure=figure.label,
        unit=figure.unit,
        ours=ours,
        other=statistics.median(other_runs) if other_runs else None,
        other_is=PARTIES.get(figure.party or ""),
        ratio=ratio,
        aim=", ".join(map(str, aims)),
        met=all(aim.met(ours, ratio) for aim in aims) if aims else None,
        turns_met=_turns_met(aims, ours_runs, ratios) if aims else None,
        ratios=ratios,
        ours_runs=ours_runs,
        other_runs=other_runs,
    )


def _turns_met(aims: tuple[Aim, ...], ours: list[float], ratios: list[float]) -> int:
    turns = itertools.zip_longest(ours, ratios)
    return sum(all(aim.met(mine, ratio) for aim in aims) for mine, ratio in turns)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"
