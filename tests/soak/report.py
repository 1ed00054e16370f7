"""The report of a soak, as JSON and as text."""

from collections import Counter
from typing import Any

from tests.soak import verdict
from tests.soak.evidence import CORRECT, DISCONNECTED, WRONG, Evidence

QUARTERS = ("first_quarter", "second_quarter", "third_quarter", "fourth_quarter")


def build(evidence: Evidence, seconds: float) -> dict[str, Any]:
    """Return the report as a JSON document."""
    results = Counter(outcome.result for outcome in evidence.outcomes)
    max_latency, p99_latency = verdict.summarize_latency(evidence.latencies)
    survivor_bytes = [sample.worker_bytes.get(evidence.survivor_pid, 0) for sample in evidence.samples]
    return {
        "seed": evidence.seed,
        "seconds": seconds,
        "requests": len(evidence.outcomes),
        "correct": results[CORRECT],
        "disconnected": results[DISCONNECTED],
        "wrong": results[WRONG],
        "errors": {
            code: count for code, count in sorted(results.items()) if code not in (CORRECT, DISCONNECTED, WRONG)
        },
        "kinds": dict(sorted(Counter(outcome.kind for outcome in evidence.outcomes).items())),
        "faults": dict(sorted(Counter(fault.kind.value for fault in evidence.faults).items())),
        "loads": sum(line.get("event") == "loaded" for line in evidence.log),
        "daemon_bytes": summarize_memory([sample.daemon_bytes for sample in evidence.samples]),
        "worker_bytes": summarize_memory(survivor_bytes),
        "latency_seconds": {"max": max_latency, "p99": p99_latency},
        "problems": verdict.find_problems(evidence),
    }


def render(document: dict[str, Any]) -> str:
    """Return the report as text."""
    latency = document["latency_seconds"]
    rows = [
        ("seed", str(document["seed"])),
        ("seconds", f"{document['seconds']:g}"),
        ("requests", str(document["requests"])),
        ("  correct", str(document["correct"])),
        ("  disconnected", str(document["disconnected"])),
        ("  wrong", str(document["wrong"])),
        *[(f"  {code}", str(count)) for code, count in document["errors"].items()],
        *[(f"fault: {kind}", str(count)) for kind, count in document["faults"].items()],
        ("loads", str(document["loads"])),
        ("daemon, MB", render_series(document["daemon_bytes"])),
        ("one worker, MB", render_series(document["worker_bytes"])),
        ("/health latency, ms", f"p99 {latency['p99'] * 1e3:.0f}, max {latency['max'] * 1e3:.0f}"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {value}" for name, value in rows]
    problems = document["problems"]
    return "\n".join([*lines, "", *(["PROBLEMS:", *problems] if problems else ["OK: all checks passed"])])


def summarize_memory(values: list[int]) -> dict[str, int]:
    """Return the resident bytes at the start and the median of each quarter."""
    start = values[0] if values else 0
    return {"start": start, **dict(zip(QUARTERS, map(int, verdict.quarter_medians(values)), strict=True))}


def render_series(values: dict[str, int]) -> str:
    return " -> ".join(f"{value / 1e6:.1f}" for value in values.values())
