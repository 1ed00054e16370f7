"""Who may have how much memory, and who goes to make room. Pure arithmetic: no clock, no state, no I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Holding:
    """A model that has memory, or is getting it.

    `needs_bytes` is what it cannot do without now: weights, and room for its requests; what it keeps of earlier prompts
    is not part of it. `last_used` orders models by use. One that is `leaving` is being ended already, but its memory is
    not back yet.
    """

    key: str
    needs_bytes: int
    last_used: float = 0.0
    busy: bool = False
    pinned: bool = False
    leaving: bool = False


@dataclass(frozen=True)
class Plan:
    """How room can be made: end those of `evict`, once those of `drain`, which are in use, are idle and ended too.

    `possible` is False if all that is not pinned together is not enough.
    """

    evict: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    possible: bool = True


def make_room(budget: int, holdings: Iterable[Holding], needed: int) -> Plan:
    """Who must go so that `needed` bytes fit beside the rest.

    Idle models go first, those in use only if they do not suffice; among each, the least recently used go first, and no
    more than needed. Pinned models never go.

    Args:
        budget: bytes for all.
        holdings: all models that have memory.
        needed: bytes that are wanted; 0 asks who must go for the rest to be within the budget.
    """
    staying = [holding for holding in holdings if not holding.leaving]
    short = needed + sum(holding.needs_bytes for holding in staying) - budget
    free = sorted((holding for holding in staying if not holding.pinned), key=lambda holding: holding.last_used)
    evict = _enough([holding for holding in free if not holding.busy], short)
    short -= _total(evict)
    if short <= 0:
        return Plan(evict=_keys(evict))
    drain = _enough([holding for holding in free if holding.busy], short)
    if _total(drain) < short:
        return Plan(possible=False)
    # With somebody large among those in use, some of the idle may stay after all.
    evict = _enough(evict, short + _total(evict) - _total(drain))
    return Plan(evict=_keys(evict), drain=_keys(drain))


def shares(budget: int, needs: Mapping[str, int]) -> dict[str, int]:
    """The bytes that each model may use: what it needs, and an equal part of what nobody needs.

    Together they are no more than the budget, unless the needs alone are.
    """
    spare = max(budget - sum(needs.values()), 0)
    return {key: needed + spare // len(needs) for key, needed in needs.items()}


def _enough(candidates: Sequence[Holding], short: int) -> list[Holding]:
    """The first of `candidates` that have `short` bytes together, or all; without those that turn out unnecessary."""
    chosen: list[Holding] = []
    for holding in candidates:
        if short <= _total(chosen):
            break
        chosen.append(holding)
    surplus = _total(chosen) - short
    for holding in reversed(chosen):
        if holding.needs_bytes <= surplus:
            chosen.remove(holding)
            surplus -= holding.needs_bytes
    return chosen


def _total(holdings: Iterable[Holding]) -> int:
    return sum(holding.needs_bytes for holding in holdings)


def _keys(holdings: Iterable[Holding]) -> tuple[str, ...]:
    return tuple(holding.key for holding in holdings)
