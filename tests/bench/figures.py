"""The figures of the table, what each is compared with, and its goals."""

from dataclasses import dataclass, field
from typing import Literal

from tests.bench import bodies
from tests.bench.models import IMPORTED, SMOLLM, STARTER, TINY, VISION

OURS, THEIRS, RAW, COPY = "ours", "theirs", "raw", "copy"
PROGRAMS = {OURS: "osaurusd", THEIRS: "mlx_lm.server", RAW: "mlx_lm in process", COPY: "cp and SHA-256"}


@dataclass(frozen=True)
class Goal:
    """A limit for our value, or for its ratio to the value that it is compared with."""

    subject: Literal["ours", "ratio"]
    operator: Literal[">=", "<="]
    limit: float

    def __str__(self) -> str:
        return f"{self.subject} {self.operator} {self.limit:g}"

    def is_met(self, ours: float, ratio: float | None) -> bool:
        value = ours if self.subject == "ours" else ratio
        if value is None:
            return False
        return value >= self.limit if self.operator == ">=" else value <= self.limit


Goals = dict[str, tuple[Goal, ...]]


@dataclass(frozen=True)
class Figure:
    """A row of the table.

    Attributes:
        measurement: name of the measurement that returns the figure.
        label: label in the table.
        unit: unit of both values.
        name: the measurement's name for our value.
        program: the program whose value ours is compared with, or None.
        other_name: the measurement's name for the other value, if it differs.
        goals: goals by model.
    """

    measurement: str
    label: str
    unit: str
    name: str
    program: str | None = THEIRS
    other_name: str | None = None
    goals: Goals = field(default_factory=dict)


def both_models(*goals: Goal) -> Goals:
    return {SMOLLM.name: goals, TINY.name: goals}


def min_ratio(smollm: float, tiny: float) -> Goals:
    return {SMOLLM.name: (Goal("ratio", ">=", smollm),), TINY.name: (Goal("ratio", ">=", tiny),)}


NO_WORSE = Goal("ratio", "<=", 1.0)
MIXED = both_models(Goal("ratio", ">=", 0.9))


def protocol_figures(name: str) -> tuple[Figure, Figure]:
    """Return the figures of a protocol, compared with those of chat completions."""
    rate, cost = (Goal("ratio", ">=", 0.9),), (Goal("ratio", "<=", 1.1),)
    label = f"16 streams, {name} / chat"
    return (
        Figure("protocols", label, "tok/s", f"{name} rate", OURS, "chat rate", {TINY.name: rate}),
        Figure("protocols", f"{label}, daemon", "us/tok", f"{name} cost", OURS, "chat cost", {TINY.name: cost}),
    )


COMPARED = [
    Figure("decode", "one stream", "tok/s", "decode"),
    Figure("decode", "one stream / raw", "tok/s", "decode", RAW, goals=min_ratio(0.97, 0.90)),
    Figure("streams", "8 streams, total", "tok/s", "total 8", goals=min_ratio(1.0, 1.1)),
    Figure("streams", "8 streams, TTFT p50", "s", "ttft p50 8"),
    Figure("streams", "8 streams, TTFT max", "s", "ttft max 8"),
    Figure("streams", "16 streams, total", "tok/s", "total 16", goals=min_ratio(1.0, 1.1)),
    Figure("streams", "16 streams, TTFT p50", "s", "ttft p50 16"),
    Figure("streams", "16 streams, TTFT max", "s", "ttft max 16"),
    Figure("prefix", "TTFT cold, 1,200-token prefix", "s", "ttft cold"),
    Figure("prefix", "TTFT warm", "s", "ttft warm"),
    Figure(
        "prefix",
        "warm / cold",
        "",
        "warm/cold",
        goals={SMOLLM.name: (Goal("ours", "<=", 0.05), NO_WORSE), TINY.name: (NO_WORSE,)},
    ),
    Figure("stall", "2 streams, normal gap", "s", "gap"),
    Figure("stall", "longest gap during 2,000-token prompt", "s", "longest gap"),
    Figure("stall", "longest gap / normal gap", "", "stall", goals=both_models(Goal("ours", "<=", 8.0))),
    Figure("stall", "TTFT of 2,000-token prompt", "s", "ttft long", goals=both_models(Goal("ratio", "<=", 1.3))),
    Figure("seeded", "4 plain of 7 streams, 3 seeded / 0", "tok/s", "mixed batch", OURS, "plain batch", MIXED),
    Figure(
        "constrained", "4 plain of 7 streams, 3 constrained / 0", "tok/s", "mixed batch", OURS, "plain batch", MIXED
    ),
    Figure("decisions", "1 question, 1,000 tokens / chat with 1 token", "s", "1 question", OURS, "chat"),
    Figure("decisions", "20 questions, 1,000 tokens / 1 question", "s", "20 questions", OURS, "1 question"),
    *(figure for protocol in ("responses", "anthropic", "ollama") for figure in protocol_figures(protocol)),
]
"""Figures of models that both servers serve."""

STARTUP = [
    Figure("startup", "daemon start to health 200", "s", "ready", None),
    Figure("startup", "idle daemon, resident", "MB", "resident", None),
    Figure("startup", "osaurusctl ls", "s", "ls", None),
    Figure("startup", "worker start to first token", "s", "first token", None),
]
"""Figures of osaurusd only."""

IMAGES = [
    Figure("image questions", "TTFT of a first question, image of 1,024 pixels", "s", "ttft first", None),
    Figure("image questions", "TTFT of a second question", "s", "ttft second", None),
    Figure(
        "image questions", "second / first", "", "second/first", None, goals={VISION.name: (Goal("ours", "<=", 0.15),)}
    ),
    Figure("image stall", "2 streams, normal gap", "s", "gap", None),
    Figure("image stall", "longest gap during a first question", "s", "longest gap", None),
    Figure(
        "image stall", "longest gap / normal gap", "", "stall", None, goals={VISION.name: (Goal("ours", "<=", 8.0),)}
    ),
]
"""Figures of a vision-language model."""

IMPORTS = [
    Figure(
        "imports",
        "import / cp and SHA-256 of OpenSSL",
        "s",
        "seconds",
        COPY,
        goals={IMPORTED: (Goal("ratio", "<=", 1.3),)},
    ),
    Figure("imports", "import / cp and command sha256sum", "s", "seconds", COPY, "command seconds"),
    Figure("imports", "import, processor time", "s", "processor seconds", COPY),
    Figure("imports", "import of the vocabulary alone", "s", "small seconds", COPY, "seconds"),
    Figure("imports", "import of the vocabulary alone, processor time", "s", "small processor seconds", None),
]
"""Figures of the import of a GGUF file."""

BODIES = [
    Figure(name, f"4 MB {name}: longest GET /health / idle", "ms", "during", OURS, "idle") for name in bodies.BODIES
]
"""Figures of large request bodies."""

SECTIONS = {
    STARTER: STARTUP,
    IMPORTED: IMPORTS,
    VISION.name: IMAGES,
    SMOLLM.name: COMPARED,
    TINY.name: [*COMPARED, *BODIES],
}
