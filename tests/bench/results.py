"""What was measured, and why a part was not."""

from dataclasses import dataclass, field

Key = tuple[str, str, str, str]
"""Model, part, party, figure."""


@dataclass
class Results:
    """The values of every turn: the nth ones of two parties were measured one after the other.

    `busy` are the shares of the processors that other programs took just before each turn, when all of ours were idle.
    """

    runs: dict[Key, list[float]] = field(default_factory=dict)
    busy: list[float] = field(default_factory=list)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, model: str, part: str, party: str, figures: dict[str, float]) -> None:
        for figure, value in figures.items():
            self.runs.setdefault((model, part, party, figure), []).append(value)

    def fail(self, model: str, part: str, reason: str) -> None:
        """Note that a part could not be measured; what it has measured of this model does not count."""
        self.failures[model, part] = reason
        for key in [key for key in self.runs if key[:2] == (model, part)]:
            del self.runs[key]
