"""Memory policy: which models fit, which are evicted, and how the budget is divided. Pure functions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter

import msgspec

from osaurusd.errors import Busy, InsufficientMemory
from osaurusd.pool.state import ModelState
from osaurusd.wire.admin import WorkerState
from osaurusd.wire.sizes import format_bytes

RETRY_SECONDS = 5
"""When a request may find the memory free that running requests did not release in time."""


class Plan(msgspec.Struct, frozen=True):
    """How to make room: stop the idle models of `evict`, and those of `drain` once their requests have completed.

    `possible` is False if all models that are not pinned together do not free enough.
    """

    evict: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    possible: bool = True


def make_room(
    budget: int,
    models: Iterable[ModelState],
    needed: int,
    *,
    size: Callable[[ModelState], int] = attrgetter("held_bytes"),
) -> Plan:
    """Choose the models to stop so that `needed` bytes fit into the budget together with the others.

    Idle models are chosen before busy ones, least recently used first, and none unnecessarily. Pinned models stay.

    Args:
        budget: bytes for all models.
        models: the models in memory; stopping ones count as free already.
        needed: bytes to make room for; 0 brings the models themselves within the budget.
        size: the bytes of a model.
    """
    staying = [model for model in models if model.state is not WorkerState.STOPPING]
    missing = needed + sum(map(size, staying)) - budget
    evictable = sorted((model for model in staying if not model.pinned), key=lambda model: model.last_used)
    evict = _choose([model for model in evictable if not model.busy], missing, size)
    missing -= sum(map(size, evict))
    if missing <= 0:
        return Plan(evict=_keys(evict))
    drain = _choose([model for model in evictable if model.busy], missing, size)
    drained = sum(map(size, drain))
    if drained < missing:
        return Plan(possible=False)
    # A large busy model may make the eviction of some idle ones unnecessary.
    evict = _choose(evict, missing + sum(map(size, evict)) - drained, size)
    return Plan(evict=_keys(evict), drain=_keys(drain))


def unused(models: Iterable[ModelState]) -> list[ModelState]:
    """Return the models that may be unloaded without an effect on anything but the next request."""
    return [model for model in models if model.idle and not model.pinned]


def unload_refusal(model: ModelState) -> Busy | None:
    """Return why a model is not unloaded without force; None if it is."""
    users = model.in_flight + len(model.waiters)
    if model.state is WorkerState.STOPPING:
        return None
    if users:
        return Busy(f"`{model.key}` is serving {users} request(s); wait for them or use --force")
    if model.pinned:
        return Busy(f"`{model.key}` is pinned; unpin it, or use --force to unload it until the next request")
    return None


def divide_budget(budget: int, needs: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes each model may use: what it needs, and an equal part of the rest.

    The sum exceeds the budget only if the needs do.
    """
    rest = max(budget - sum(needs.values()), 0)
    return {key: needed + rest // len(needs) for key, needed in needs.items()}


def fits(budget: int, model: ModelState, in_memory: Sequence[ModelState], queued: int, leaving: set[str]) -> bool:
    """Whether `model` fits now, and will still fit together with the models queued before it.

    Args:
        budget: bytes for all models.
        model: the model to start.
        in_memory: the models in memory.
        queued: bytes of the models queued before it.
        leaving: keys of the models that are about to be unloaded.
    """
    now = sum(other.held_bytes for other in in_memory)
    later = queued + sum(other.held_bytes for other in in_memory if other.key not in leaving)
    return model.needs_bytes + max(now, later) <= budget


def can_never_fit(budget: int, model: ModelState, in_memory: Iterable[ModelState]) -> bool:
    """Whether `model` does not fit even if only the pinned models, all idle, are loaded."""
    pinned = (other for other in in_memory if other.pinned and other.state is not WorkerState.STOPPING)
    return model.needs_bytes + sum(other.needs_bytes for other in pinned) > budget


def insufficient_memory(
    budget: int, model: ModelState, in_memory: Sequence[ModelState], lent: int = 0
) -> InsufficientMemory:
    """Build the error for a model that gets no memory, with the current use of the budget.

    Args:
        budget: bytes for all models.
        model: the model.
        in_memory: the models in memory.
        lent: bytes lent to other hosts, which the budget does not contain.
    """
    needs = f"`{model.key}` needs {format_bytes(model.needs_bytes)}"
    if model.needs_bytes > budget:
        problem = f"{needs} and can never fit into the memory budget of {format_bytes(budget)}"
    elif can_never_fit(budget, model, in_memory):
        problem = f"{needs} and cannot fit alongside the pinned models"
    else:
        problem = f"{needs}, but running requests did not release enough memory in time"
    free = max(budget - sum(other.held_bytes for other in in_memory), 0)
    usage = "; ".join(map(describe_usage, in_memory)) or "no model is loaded"
    if lent:
        usage += f"; {format_bytes(lent)} are lent to other hosts"
    error = InsufficientMemory(
        f"{problem}: {format_bytes(free)} of {format_bytes(budget)} are free; {usage}", location=("model",)
    )
    if not can_never_fit(budget, model, in_memory):
        error.retry_after = RETRY_SECONDS
    return error


def pins_exceed_budget(budget: int, needs: Mapping[str, int]) -> InsufficientMemory:
    """Build the error for a pin that would reserve more than the budget."""
    terms = " + ".join(f"`{key}` {format_bytes(needed)}" for key, needed in needs.items())
    return InsufficientMemory(
        f"the pinned models would need {terms} = {format_bytes(sum(needs.values()))}, more than the memory budget of "
        f"{format_bytes(budget)}; unpin a model or raise `residency.budget_bytes`",
        location=("model",),
    )


def describe_usage(model: ModelState) -> str:
    """Describe the memory that a model holds."""
    activity = f"{model.in_flight} in flight" if model.in_flight else "idle"
    return f"`{model.key}` holds {format_bytes(model.held_bytes)} ({activity}{', pinned' if model.pinned else ''})"


def _choose(candidates: Sequence[ModelState], missing: int, size: Callable[[ModelState], int]) -> list[ModelState]:
    """Return the first candidates that free `missing` bytes together, or all, without unnecessary ones."""
    chosen: list[ModelState] = []
    freed = 0
    for model in candidates:
        if missing <= freed:
            break
        chosen.append(model)
        freed += size(model)
    surplus = freed - missing
    for model in reversed(chosen):
        if size(model) <= surplus:
            chosen.remove(model)
            surplus -= size(model)
    return chosen


def _keys(models: Iterable[ModelState]) -> tuple[str, ...]:
    return tuple(model.key for model in models)
