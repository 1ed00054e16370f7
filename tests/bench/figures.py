"""The figures that are shown, what each is compared with, and what we aim at."""

from dataclasses import dataclass, field
from typing import Literal

from tests.bench.models import SMOLLM, STARTER, TINY

OURS, THEIRS, RAW = "ours", "theirs", "raw"
PARTIES = {OURS: "osaurusd", THEIRS: "mlx_lm.server", RAW: "mlx_lm in process"}


@dataclass(frozen=True)
class Aim:
    """A limit for our figure, or for its ratio to the one it is compared with."""

    of: Literal["ours", "ratio"]
    sign: Literal[">=", "<="]
    limit: float

    def __str__(self) -> str:
        return f"{self.of} {self.sign} {self.limit:g}"

    def met(self, ours: float, ratio: float | None) -> bool:
        value = ours if self.of == "ours" else ratio
        if value is None:
            return False
        return value >= self.limit if self.sign == ">=" else value <= self.limit


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes:
        part: the measurement that yields it.
        label: for the table.
        unit: of both values.
        name: what the measurement calls ours.
        party: whose value it is compared with; None for nobody's.
        other: what the measurement calls that one, if not the same.
        aims: by model.
    """

    part: str
    label: str
    unit: str
    name: str
    party: str | None = THEIRS
    other: str | None = None
    aims: dict[str, tuple[Aim, ...]] = field(default_factory=dict)


def _both(*aims: Aim) -> dict[str, tuple[Aim, ...]]:
    return {SMOLLM.name: aims, TINY.name: aims}


def _at_least(smollm: float, tiny: float) -> dict[str, tuple[Aim, ...]]:
    return {SMOLLM.name: (Aim("ratio", ">=", smollm),), TINY.name: (Aim("ratio", ">=", tiny),)}


_NO_WORSE = Aim("ratio", "<=", 1.0)
_BESIDE = _both(Aim("ratio", ">=", 0.9))

COMPARED = [
    Figure("decode", "one stream", "tok/s", "decode"),
    Figure("decode", "one stream / raw", "tok/s", "decode", RAW, aims=_at_least(0.97, 0.90)),
    Figure("streams", "8 streams, total", "tok/s", "total 8", aims=_at_least(1.0, 1.1)),
    Figure("streams", "8 streams, TTFT p50", "s", "ttft p50 8"),
    Figure("streams", "8 streams, TTFT max", "s", "ttft max 8"),
    Figure("streams", "16 streams, total", "tok/s", "total 16", aims=_at_least(1.0, 1.1)),
    Figure("streams", "16 streams, TTFT p50", "s", "ttft p50 16"),
    Figure("streams", "16 streams, TTFT max", "s", "ttft max 16"),
    Figure("prefix", "TTFT cold, 1,200-token prefix", "s", "ttft cold"),
    Figure("prefix", "TTFT warm", "s", "ttft warm"),
    Figure(
        "prefix",
        "warm / cold",
        "",
        "warm/cold",
        aims={SMOLLM.name: (Aim("ours", "<=", 0.05), _NO_WORSE), TINY.name: (_NO_WORSE,)},
    ),
    Figure("stall", "2 streams, normal gap", "s", "gap"),
    Figure("stall", "longest gap under 2,000 tokens", "s", "longest gap"),
    Figure("stall", "the same in normal gaps", "gaps", "stall", aims=_both(Aim("ours", "<=", 8.0))),
    Figure("stall", "TTFT of the 2,000 tokens", "s", "ttft long", aims=_both(Aim("ratio", "<=", 1.3))),
    Figure("seeded", "free beside 3 seeded / 7 free", "tok/s", "free beside", OURS, "free alone", _BESIDE),
    Figure("constrained", "free beside 3 constrained / 7 free", "tok/s", "free beside", OURS, "free alone", _BESIDE),
]
"""Of each model that both servers serve."""

STARTUP = [
    Figure("startup", "daemon start to health 200", "s", "ready", None),
    Figure("startup", "idle daemon, resident", "MB", "resident", None),
    Figure("startup", "osaurusctl ls", "s", "ls", None),
    Figure("startup", "worker start to first token", "s", "first token", None),
]
"""Of our daemon."""

SECTIONS = {STARTER: STARTUP, SMOLLM.name: COMPARED, TINY.name: COMPARED}
