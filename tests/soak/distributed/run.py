"""Clients that compare tokens, an operator that causes faults, and what must hold afterwards."""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai
import psutil
from openai import OpenAI

from tests import descriptors
from tests.distributed.cluster import Cluster, wait_until
from tests.distributed.hosts import CommandFailed, Host
from tests.distributed.models import PIPELINE, TENSOR, Reference, complete, connect, tokens_of
from tests.soak.command import print_progress
from tests.soak.distributed.faults import TIMEOUTS, Faults

CLIENTS = 3
SPLITS = {TENSOR: ("tensor", "b"), PIPELINE: ("pipeline", "c")}
"""How each model is loaded, and on which host besides the leader. A host lends all its memory to one model."""

REQUEST_SECONDS = 240.0
RECOVERY_SECONDS = 180.0

PAUSE_SECONDS = (3.0, 20.0)
GROWTH_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Outcome:
    """A request: `correct`, `wrong`, `hang`, or the code of its error."""

    result: str
    started: float
    ended: float
    detail: str = ""


@dataclass(frozen=True)
class FaultTime:
    """A fault, and the time after which the next request was served."""

    kind: str
    started: float
    ended: float
    recovered: float


@dataclass
class Evidence:
    """All observations of a soak."""

    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    faults: list[FaultTime] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)


class Soak:
    """A soak in progress.

    Args:
        cluster: three paired hosts with the models of `SPLITS` on the first one.
        seed: decides the random choices.
    """

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.evidence = Evidence(seed)
        self._cluster = cluster
        self._references: dict[str, list[Reference]] = {}
        self._done = threading.Event()
        self._before: dict[str, Measurement] = {}

    def run(self, seconds: float) -> Evidence:
        self._create_references()
        self._check_all("before the faults")
        self._measure_restarted()
        clients = [threading.Thread(target=self._send_until_done, args=(number,)) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            with self._recorded("while causing faults"):
                self._cause_faults(time.monotonic() + seconds)
        finally:
            self._done.set()
            for client in clients:
                client.join()
        self._check_all("after the faults")
        self._check_nothing_left()
        self.evidence.problems += find_problems(self.evidence)
        return self.evidence

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"{self.evidence.seed} {name}")

    @contextlib.contextmanager
    def _recorded(self, when: str) -> Iterator[None]:
        """Record an error of the block as a problem, so that the report of the run is not lost."""
        try:
            yield
        except (AssertionError, CommandFailed, psutil.Error) as error:
            self.evidence.problems.append(f"{when}: {error}")

    def _create_references(self) -> None:
        print_progress("creating references on one host")
        for model, (split, follower) in SPLITS.items():
            self._references[model] = self._cluster.references(model, seed=self.evidence.seed)
            self._cluster.leader.ctl("load", model, "--hosts", follower, "--split", split)

    def _check_all(self, when: str) -> None:
        """Send each reference once."""
        for model, references in self._references.items():
            with self._cluster.client as client:
                for reference in references:
                    outcome = send(client, model, reference)
                    if outcome.result != "correct":
                        self.evidence.problems.append(f"{when}: {model}: {outcome.result} {outcome.detail}")

    def _send_until_done(self, number: int) -> None:
        rng = self._rng(f"client {number}")
        while not self._done.is_set():
            model = rng.choice(list(SPLITS))
            with connect(self._cluster.leader.url).with_options(timeout=REQUEST_SECONDS) as client:
                outcome = send(client, model, rng.choice(self._references[model]))
            self.evidence.outcomes.append(outcome)
            if outcome.result != "correct":
                time.sleep(0.5)

    def _cause_faults(self, deadline: float) -> None:
        rng = self._rng("faults")
        faults = Faults(self._cluster, list(SPLITS), rng)
        while time.monotonic() < deadline:
            time.sleep(rng.uniform(*PAUSE_SECONDS))
            kind = rng.choice(faults.kinds())
            print_progress(f"fault: {kind.__name__}")
            started = time.monotonic()
            kind(faults)
            ended = time.monotonic()
            self.evidence.faults.append(FaultTime(kind.__name__, started, ended, self._recover(kind.__name__)))
            self._measure_restarted()

    def _recover(self, kind: str) -> float:
        """Wait until both models serve requests again; return the time."""
        for model, references in self._references.items():
            deadline = time.monotonic() + RECOVERY_SECONDS
            while True:
                with self._cluster.client as client:
                    outcome = send(client, model, references[0])
                if outcome.result == "correct":
                    break
                if time.monotonic() > deadline:
                    self.evidence.problems.append(f"{kind}: {model} does not recover: {outcome.detail}")
                    break
                time.sleep(0.5)
        return time.monotonic()

    def _measure_restarted(self) -> None:
        """Measure the daemons that have started since the last time, once they have served requests."""
        for host in self._cluster.hosts:
            if host.name not in self._before or self._before[host.name].pid != host.pid:
                self._before[host.name] = measure(host)

    def _check_nothing_left(self) -> None:
        with self._recorded("after unloading"):
            for model in SPLITS:
                self._cluster.unload(model)
            self._cluster.check_nothing_left(TENSOR)
        for host in self._cluster.hosts:
            start = self._before[host.name]
            with self._recorded("after the run"):
                assert start.pid == host.pid, f"{host.name} has restarted without a fault"
                wait_until(lambda host=host, start=start: not leaks(start, measure(host)), f"{host.name} leaks")
            self.evidence.memory[host.name] = (start.resident_bytes, measure(host).resident_bytes)


@dataclass(frozen=True)
class Measurement:
    """What the daemon of a host uses."""

    pid: int
    resident_bytes: int
    descriptors: Counter[str]


def measure(host: Host) -> Measurement:
    resident = psutil.Process(host.pid).memory_info().rss
    return Measurement(host.pid, resident, descriptors.by_kind(host.pid))


def leaks(before: Measurement, after: Measurement) -> bool:
    grown = after.resident_bytes > before.resident_bytes + GROWTH_BYTES
    return grown or after.descriptors.total() > before.descriptors.total()


def send(client: OpenAI, model: str, reference: Reference) -> Outcome:
    """Send a request, and compare its tokens with those of one host."""
    started = time.monotonic()
    try:
        tokens, _ = tokens_of(complete(client, model, reference.prompt))
    except openai.APITimeoutError:
        return Outcome("hang", started, time.monotonic())
    except openai.APIError as error:
        return Outcome(error.code or type(error).__name__, started, time.monotonic(), error.message)
    if tokens != reference.tokens:
        return Outcome("wrong", started, time.monotonic(), f"{tokens} instead of {reference.tokens}")
    return Outcome("correct", started, time.monotonic())


def find_problems(evidence: Evidence) -> list[str]:
    problems = [
        f"{outcome.result}: {outcome.detail}" for outcome in evidence.outcomes if outcome.result in ("wrong", "hang")
    ]
    problems += [
        f"without a fault: {outcome.result}: {outcome.detail}"
        for outcome in evidence.outcomes
        if outcome.result not in ("correct", "wrong", "hang") and not is_excused(outcome, evidence.faults)
    ]
    if not any(outcome.result == "correct" for outcome in evidence.outcomes):
        problems.append("no request succeeded")
    return problems


def is_excused(outcome: Outcome, faults: Sequence[FaultTime]) -> bool:
    """Whether a fault explains why a request failed."""
    return any(outcome.ended >= fault.started and outcome.started <= fault.recovered for fault in faults)


def build_report(evidence: Evidence, seconds: float) -> dict[str, Any]:
    results = Counter(outcome.result for outcome in evidence.outcomes)
    recoveries = [fault.recovered - fault.ended for fault in evidence.faults]
    durations = [outcome.ended - outcome.started for outcome in evidence.outcomes]
    return {
        "seed": evidence.seed,
        "seconds": seconds,
        "requests": len(evidence.outcomes),
        "results": dict(sorted(results.items())),
        "faults": dict(sorted(Counter(fault.kind for fault in evidence.faults).items())),
        "longest_recovery_seconds": round(max(recoveries, default=0.0), 1),
        "longest_request_seconds": round(max(durations, default=0.0), 1),
        "daemon_bytes": {name: list(values) for name, values in evidence.memory.items()},
        "timeouts": TIMEOUTS,
        "problems": evidence.problems,
    }
