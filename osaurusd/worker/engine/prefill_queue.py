"""The order in which prompts are prefilled, how they share passes, and where they are stored in the prefix cache."""

from osaurusd.worker.engine.kv_cache import CacheLayout
from osaurusd.worker.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from osaurusd.worker.engine.request import PrefillTask

# The last pass yields the logits to continue from. With at most this many tokens, computing all logits is cheap.
LAST_PASS_TOKENS = 64
MIN_LAST_PASS_TOKENS = 16

# A shared prefix shorter than this is worth neither waiting for nor a checkpoint.
MIN_SHARED_TOKENS = 64

# The prompt with the least remaining work is chosen, unless another was passed over this often.
MAX_PASSED_OVER = 3

# Prompts close to their end share a pass: a pass over few tokens hardly uses a GPU.
MAX_BATCHED_PROMPTS = 16
BATCHED_PROMPT_TOKENS = 256

# Prompts over `LAST_PASS_TOKENS` share a pass only if padding is at most this share of its own tokens.
_MAX_PADDING = 0.25

# Scoring needs the logits of every token: this bounds their size.
SCORING_TOKENS = 64


class PrefillQueue:
    """Admitted prompts that are not complete.

    Args:
        layout: layout of the model's caches.
        prefix_cache: looked up when a prompt starts.

    Attributes:
        tasks: in order of admission.
        started: tasks that have started since the planner last collected them.
    """

    def __init__(self, layout: CacheLayout, prefix_cache: PrefixCache) -> None:
        self._layout = layout
        self._prefix_cache = prefix_cache
        self.tasks: list[PrefillTask] = []
        self.started: list[PrefillTask] = []

    def next_task(self, max_remaining: int | None = None) -> PrefillTask | None:
        """Choose the next prompt: the shortest remaining one, or one that was passed over too often.

        Args:
            max_remaining: ignore longer prompts.
        """
        ready = _without_duplicates(self._ready(max_remaining))
        if not ready:
            return None
        starving = [task for task in ready if task.passed_over >= MAX_PASSED_OVER]
        chosen = starving[0] if starving else min(ready, key=lambda task: task.work)
        for task in ready:
            task.passed_over += 1
        chosen.passed_over = 0
        return chosen

    def has_short(self, max_remaining: int) -> bool:
        """Whether a prompt can be completed within `max_remaining` tokens."""
        return bool(self._ready(min(max_remaining, BATCHED_PROMPT_TOKENS)))

    def batchable(self, task: PrefillTask, limit: int) -> list[PrefillTask]:
        """Return `task`, and others that one pass over at most `limit` tokens can complete together with it."""
        batch = [task]
        if not self._can_share_last_pass(task):
            return batch
        others = [other for other in self.tasks if other is not task and other.started]
        for other in sorted(filter(self._can_share_last_pass, others), key=lambda other: other.remaining):
            tokens = other.remaining + sum(member.remaining for member in batch)
            padded = (len(batch) + 1) * max(task.remaining, other.remaining)
            too_much_padding = other.remaining > LAST_PASS_TOKENS and padded - tokens > _MAX_PADDING * tokens
            if len(batch) == MAX_BATCHED_PROMPTS or padded > limit or too_much_padding:
                break
            batch.append(other)
        return batch

    def chunk_tokens(self, task: PrefillTask, limit: int) -> int:
        """Return how many tokens the next pass over `task` alone processes, usually at most `limit`."""
        count = self._uncut_tokens(task, limit)
        image = task.image_around(task.prefilled + count)
        if image is None:
            return count
        return (image.end if image.start <= task.prefilled else image.start) - task.prefilled

    def _uncut_tokens(self, task: PrefillTask, limit: int) -> int:
        """Return what `chunk_tokens` returns if images can be cut."""
        if task.scoring:
            return min(SCORING_TOKENS, task.remaining)
        if task.remaining <= max(min(LAST_PASS_TOKENS, limit), MIN_LAST_PASS_TOKENS) and not task.checkpoints:
            return task.remaining
        count = min(limit, task.remaining - MIN_LAST_PASS_TOKENS)
        return min(count, task.checkpoints[-1] - task.prefilled) if task.checkpoints else count

    def stores(self, task: PrefillTask, end: int) -> tuple[bool, bool]:
        """Return whether to store the prefix of `task` once it is processed up to `end`, and a checkpoint there."""
        checkpoint = bool(task.checkpoints) and task.checkpoints[-1] == end
        awaited = any(not other.started for other in self.tasks)
        fills_block = end // BLOCK_TOKENS > task.prefilled // BLOCK_TOKENS
        complete = end >= task.recurring_length
        recurs = task.prefilled < task.recurring_length
        return checkpoint or (recurs and (awaited or fills_block or complete)), checkpoint

    def _ready(self, max_remaining: int | None) -> list[PrefillTask]:
        """Start the prompts that need not wait, and return those with at most `max_remaining` remaining tokens."""
        for task in self.tasks:
            if not task.started and not self._waits_for_shared_prefix(task):
                self._start(task)
        started = [task for task in self.tasks if task.started]
        return started if max_remaining is None else [task for task in started if task.work <= max_remaining]

    def _start(self, task: PrefillTask) -> None:
        """Look up the prefix cache; the match is restored by the first pass."""
        task.started = True
        task.match = self._prefix_cache.find(task.tokens, 0 if task.scoring else len(task.tokens) - 1)
        if image := task.image_around(task.match.length):
            task.match = self._prefix_cache.find(task.tokens, image.start)
        task.prefilled = task.match.length
        images = enumerate(task.request.images)
        task.unencoded.extend(index for index, image in images if image.end > task.prefilled)
        if self._layout.has_states and self._prefix_cache.enabled:
            task.checkpoints = self._checkpoints(task, task.match.shared)
        self.started.append(task)

    def _checkpoints(self, task: PrefillTask, shared: int) -> list[int]:
        """Choose checkpoints: where the prompt diverges from an earlier one, where a later one may, near its end."""
        last = len(task.tokens) - MIN_LAST_PASS_TOKENS
        # What precedes candidates shares nothing beyond the prompt of its request.
        positions = {shared, task.request.shared_prefix_length or 0, last if task.request.scored is None else 0}
        # Another question about the same images begins after them.
        positions |= {image.end for image in task.request.images[-1:]}
        positions = {image.start if (image := task.image_around(each)) else each for each in positions}
        first = task.prefilled + MIN_SHARED_TOKENS
        return sorted((position for position in positions if first <= position <= last), reverse=True)

    def _can_share_last_pass(self, task: PrefillTask) -> bool:
        """Whether its last pass is next, and neither padding nor a shared pass affects it."""
        padding_allowed = self._layout.batchable and not self._layout.has_states
        single = len(task.choices) == 1 and not task.scoring and not task.isolated and not task.needs_images
        return padding_allowed and single and task.remaining <= BATCHED_PROMPT_TOKENS

    def _waits_for_shared_prefix(self, task: PrefillTask) -> bool:
        """Whether another task is about to process, and to store, a prefix that this one shares."""
        if not self._prefix_cache.enabled or task.scoring:
            return False
        candidates = [other for other in self.tasks if other.started and self._will_store_prefix(other, task)]
        other = max(candidates, key=task.common_prefix, default=None)
        if other is None:
            return False
        common = task.common_prefix(other)
        # A task that has begun to wait waits for the whole prefix, although little of it may remain.
        if not task.waited:
            stored = self._prefix_cache.find(task.tokens, len(task.tokens) - 1).length
            if common - stored < MIN_SHARED_TOKENS:
                return False
        task.waited = True
        if image := task.image_around(common):
            common = image.start
        if self._layout.has_states and common not in other.checkpoints:
            other.checkpoints = sorted([*other.checkpoints, common], reverse=True)
        return True

    def _will_store_prefix(self, other: PrefillTask, task: PrefillTask) -> bool:
        """Whether the common prefix is still to be processed, in a pass after which it is stored."""
        common = task.common_prefix(other)
        last = len(other.tokens) - MIN_LAST_PASS_TOKENS if self._layout.has_states else len(other.tokens)
        return not other.scoring and other.prefilled < common <= last


def _without_duplicates(tasks: list[PrefillTask]) -> list[PrefillTask]:
    """Leave out tasks whose next image is being encoded for another one, after which its features are cached."""
    encoding = {task.next_image: task for task in tasks if task.encoded_stages}
    return [task for task in tasks if encoding.get(task.next_image, task) is task]
