"""Candidates for the text after a prompt: the prompts to process to compare them, and what their logits mean.

A candidate counts up to the token that tells it apart from all others. For most candidates that is the first one, whose
log-probability is known after the prompt. If several begin with the same tokens, those of the tokens after them are
needed as well, after a prompt that includes them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

TokenSequence = tuple[int, ...]


class CandidateTree:
    """The candidates after one prompt, by their common beginnings.

    Args:
        candidates: the tokens of each candidate, at least one.
    """

    def __init__(self, candidates: Sequence[TokenSequence]) -> None:
        self._candidates = _distinct_beginnings(candidates)
        following: defaultdict[TokenSequence, dict[int, None]] = defaultdict(dict)
        for candidate in self._candidates:
            for position, token in enumerate(candidate):
                following[candidate[:position]][token] = None
        self._following = {beginning: list(tokens) for beginning, tokens in following.items()}

    @property
    def size(self) -> int:
        """The number of branches."""
        return len(self._following)

    def branches(self) -> Iterator[tuple[TokenSequence, list[int]]]:
        """Yield the beginnings to append to the prompt, the empty one first, each with the tokens to compare there."""
        yield from self._following.items()

    def combine(self, logprobs: Sequence[Sequence[float]]) -> list[float]:
        """Return the log-probability of each candidate, given those of the tokens of each branch."""
        known = {
            (*beginning, token): value
            for (beginning, tokens), values in zip(self._following.items(), logprobs, strict=True)
            for token, value in zip(tokens, values, strict=True)
        }
        return [sum(known[candidate[:end]] for end in range(1, len(candidate) + 1)) for candidate in self._candidates]


def _distinct_beginnings(candidates: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Return the shortest beginning of each candidate that no other one has, or all of it if there is none."""
    counts = Counter(candidate[:end] for candidate in candidates for end in range(1, len(candidate) + 1))
    return [
        next((candidate[:end] for end in range(1, len(candidate)) if counts[candidate[:end]] == 1), candidate)
        for candidate in candidates
    ]
