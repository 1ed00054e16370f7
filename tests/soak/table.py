"""What a soak has shown, for people and as JSON."""

from collections import Counter
from typing import Any

from tests.soak import verdict
from tests.soak.evidence import LEFT, RIGHT, WRONG, Evidence


def document(evidence: Evidence, seconds: float) -> dict[str, Any]:
    """Everything that is told, as JSON."""
    results = Counter(outcome.result for outcome in evidence.outcomes)
    worst, p99 = verdict.lag(evidence.lags)
    return {
        "seed": evidence.seed,
        "seconds": seconds,
        "requests": len(evidence.outcomes),
        "right": results[RIGHT],
        "disconnects": results[LEFT],
        "wrong": results[WRONG],
        "errors": {code: count for code, count in sorted(results.items()) if code not in (RIGHT, LEFT, WRONG)},
        "kinds": dict(sorted(Counter(outcome.kind for outcome in evidence.outcomes).items())),
        "faults": dict(sorted(Counter(fault.kind.value for fault in evidence.faults).items())),
        "loads": sum(line.get("event") == "loaded" for line in evidence.log),
        "daemon_bytes": _memory([sample.daemon_bytes for sample in evidence.samples]),
        "worker_bytes": _memory([sample.worker_bytes.get(evidence.survivor, 0) for sample in evidence.samples]),
        "lag_seconds": {"max": worst, "p99": p99},
        "wrong_with": verdict.reasons(evidence),
    }


def render(told: dict[str, Any]) -> str:
    """The same as text."""
    lag = told["lag_seconds"]
    rows = [
        ("seed", str(told["seed"])),
        ("seconds", f"{told['seconds']:g}"),
        ("requests", str(told["requests"])),
        ("  answered rightly", str(told["right"])),
        ("  left by their client", str(told["disconnects"])),
        ("  answered wrongly", str(told["wrong"])),
        *[(f"  {code}", str(count)) for code, count in told["errors"].items()],
        *[(f"fault: {kind}", str(count)) for kind, count in told["faults"].items()],
        ("loads", str(told["loads"])),
        ("daemon, MB", _series(told["daemon_bytes"])),
        ("one worker, MB", _series(told["worker_bytes"])),
        ("event loop answers, ms", f"p99 {lag['p99'] * 1e3:.0f}, at most {lag['max'] * 1e3:.0f}"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {value}" for name, value in rows]
    wrong = told["wrong_with"]
    return "\n".join(
        [*lines, *(["", "WRONG:", *wrong] if wrong else ["", "all is well: nothing leaked, nothing grew"])]
    )


def _memory(values: list[int]) -> dict[str, int]:
    """Resident bytes at the start, and the median of each quarter."""
    start = values[0] if values else 0
    names = ("first_quarter", "second_quarter", "third_quarter", "fourth_quarter")
    return {"start": start, **dict(zip(names, map(int, verdict.quarters(values)), strict=True))}


def _series(values: dict[str, int]) -> str:
    return " -> ".join(f"{value / 1e6:.1f}" for value in values.values())
