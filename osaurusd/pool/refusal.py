"""Why a model is refused, with the numbers. Texts only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from osaurusd.errors import InsufficientMemory, OsaurusError


@dataclass(frozen=True)
class Holder:
    """Who holds memory."""

    key: str
    nbytes: int
    in_flight: int = 0
    pinned: bool = False


def no_room(key: str, needed: int, budget: int, held: Sequence[Holder], *, ever: bool) -> InsufficientMemory:
    """There is no room for a model.

    Args:
        key: of the model.
        needed: bytes that it needs.
        budget: bytes for all models.
        held: by whom.
        ever: whether there could be room, if requests ended or models that are not pinned did.
    """
    free = max(budget - sum(holder.nbytes for holder in held), 0)
    if needed > budget:
        why = f"`{key}` needs {megabytes(needed)} and can never fit into the memory budget of {megabytes(budget)}"
    elif not ever:
        why = f"`{key}` needs {megabytes(needed)} and cannot fit beside the pinned models"
    else:
        why = f"`{key}` needs {megabytes(needed)}, and in the time it may wait no room could be made"
    holders = "; ".join(map(_held, held)) or "no model holds any"
    return InsufficientMemory(f"{why}: {megabytes(free)} of {megabytes(budget)} are free; {holders}", param="model")


def pins_exceed(needs: Mapping[str, int], budget: int) -> InsufficientMemory:
    """Pinned models are more than there is room for."""
    parts = " + ".join(f"`{key}` {megabytes(needed)}" for key, needed in needs.items())
    return InsufficientMemory(
        f"pinned together, {parts} make {megabytes(sum(needs.values()))}, more than the memory budget of "
        f"{megabytes(budget)}",
        param="model",
    )


def backing_off(error: OsaurusError, seconds: float) -> OsaurusError:
    """The same error, with when the next attempt will be made."""
    wait = math.ceil(seconds)
    message = f"{error.message}\nthis has happened repeatedly; requests start it again in {wait} s, `load` at once"
    return type(error)(message, param=error.param)


def megabytes(count: int) -> str:
    """Bytes as people compare them."""
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"


def _held(holder: Holder) -> str:
    facts = [f"{holder.in_flight} in flight"] if holder.in_flight else ["idle"]
    facts += ["pinned"] if holder.pinned else []
    return f"`{holder.key}` holds {megabytes(holder.nbytes)} ({', '.join(facts)})"
