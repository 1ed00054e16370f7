"""The planner: decides what each step does, without reading a clock or computing with MLX.

It holds the scheduling state: which requests wait, which are prefilled, which decode, and in which batches. The engine
reports measured times and progress back to it. Its `StepPlan`s are plain data, so that every rank of a distributed
model can execute the same steps.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from osaurusd.errors import QueueFull, RequestExceedsMemory
from osaurusd.worker.engine.batch_assignment import BatchAssignment
from osaurusd.worker.engine.chunk_sizer import EFFICIENT_TOKENS, ChunkSizer
from osaurusd.worker.engine.images import FeatureCache, image_bytes
from osaurusd.worker.engine.memory import MemoryBudget
from osaurusd.worker.engine.prefill_queue import MAX_BATCHED_PROMPTS, PrefillQueue
from osaurusd.worker.engine.prefix_cache import PrefixCache
from osaurusd.worker.engine.request import EngineRequest, PrefillTask, Sequence, SequenceId

MAX_SEQUENCES = 32

# Memory for a choice without `max_tokens` is reserved this many tokens at a time.
RESERVED_TOKENS = 512


@dataclass(frozen=True)
class PrefillChunk:
    """Tokens of one prompt to process.

    Attributes:
        prompt: the id of the prompt's task.
        start, end: the token range.
        last: whether the prompt is complete afterwards, so that the logits after it are needed.
        score: whether to compute the log-probabilities of the tokens.
        store: whether to store the prompt up to `end` in the prefix cache.
        checkpoint: whether to store a checkpoint at `end` as well.
    """

    prompt: SequenceId
    start: int
    end: int
    last: bool
    score: bool = False
    store: bool = False
    checkpoint: bool = False


@dataclass(frozen=True)
class ImageStages:
    """Stages of the vision tower to compute for the image with the number `image` of a prompt."""

    prompt: SequenceId
    image: int
    start: int
    end: int


@dataclass(frozen=True)
class StepPlan:
    """What one step does: decode, encode an image, or prefill.

    Attributes:
        decode: the sequences that yield tokens, by batch.
        encode: the work of the vision tower.
        prefill: the chunks of one forward pass, all of which complete their prompts if there are several.
    """

    decode: tuple[tuple[SequenceId, ...], ...] = ()
    encode: ImageStages | None = None
    prefill: tuple[PrefillChunk, ...] = ()

    @property
    def prefill_tokens(self) -> int:
        """The tokens that the prefill pass computes, padding included."""
        return len(self.prefill) * max((chunk.end - chunk.start for chunk in self.prefill), default=0)


class Planner:
    """Schedules requests: admission, prefill, decode batches, preemption, and the size of the prefix cache.

    Args:
        memory: the memory budget.
        chunk_sizer: the prefill budget per step.
        prefix_cache: looked up when a prompt starts; its size follows the memory that requests reserve.
        features: the features of recent images; their size follows that memory as well.
        max_waiting: how many requests may wait.
        padding_per_pass: see `BatchAssignment`.

    Attributes:
        decoding: the sequences that decode, oldest first.
        reserved_bytes: what weights and running requests may grow to.
    """

    def __init__(
        self,
        memory: MemoryBudget,
        chunk_sizer: ChunkSizer,
        prefix_cache: PrefixCache,
        features: FeatureCache,
        *,
        max_waiting: int,
        padding_per_pass: int,
    ) -> None:
        self._memory = memory
        self._chunk_sizer = chunk_sizer
        self._prefix_cache = prefix_cache
        self._features = features
        self._padding_per_pass = padding_per_pass
        self.max_waiting = max_waiting
        self.clear()

    def clear(self) -> None:
        """Drop all requests."""
        layout = self._memory.layout
        self._waiting: deque[PrefillTask] = deque()
        self._prefill = PrefillQueue(layout, self._prefix_cache)
        self._completed: list[list[PrefillTask]] = []
        self._batches = BatchAssignment(self._padding_per_pass, batchable=layout.batchable)
        self._budget: int | None = None
        self._shared = False
        self._burst_tokens = 0
        self._in_burst = False
        self.decoding: dict[SequenceId, Sequence] = {}
        self.update_reservations()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._prefill.tasks or self.decoding)

    @property
    def batching_seconds(self) -> float:
        """How long the first prompts should wait for others to share their pass; 0 once any work has started."""
        tasks = [*self._waiting, *self._prefill.tasks]
        if self.decoding or not tasks or any(task.started for task in tasks):
            return 0.0
        return self._chunk_sizer.batching_seconds(min(len(task.tokens) for task in tasks))

    @property
    def request_ids(self) -> list[int]:
        """The ids of all requests."""
        tasks = [*self._waiting, *self._prefill.tasks, *self._completed_tasks()]
        ids = [task.request.id for task in tasks] + [sequence.request.id for sequence in self.decoding.values()]
        return list(dict.fromkeys(ids))

    def submit(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            RequestExceedsMemory: it would not fit even if it ran alone.
            QueueFull: too many requests are waiting.
        """
        together = self._memory.layout.batchable and request.scored is None
        limit = self._memory.max_tokens(len(request.choices) if together else 1, image_bytes(request.images))
        if limit is not None:
            _apply_memory_limit(request, limit)
        self.admit()  # requests that can start do not count as waiting
        waiting = len({task.request.id for task in self._waiting})
        if waiting >= self.max_waiting and not request.continuation:
            raise QueueFull(f"{waiting} requests are already waiting for this model; try again later")
        if request.scored is not None:
            self._waiting.extend(request.next_tasks(MAX_BATCHED_PROMPTS))
            return
        groups = [request.choices] if together else [[choice] for choice in request.choices]
        self._waiting.extend(PrefillTask.from_request(request, choices) for choices in groups)

    def admit(self) -> bool:
        """Start waiting requests in order while there is room; return whether any has started."""
        admitted = False
        max_sequences = MAX_SEQUENCES if self._memory.layout.batchable else 1
        while self._waiting:
            task = self._waiting[0]
            decoding, joining = self._reserved_lengths()
            lengths = [_reserved_length(task, sequence) for sequence in task.sequences]
            running = len(decoding) + len(joining)
            needed = self._image_bytes(task)
            fits = running + len(lengths) <= max_sequences and self._memory.fits(decoding, [*joining, *lengths], needed)
            if running and not fits:
                break
            for choice, length in zip(task.choices, lengths, strict=True):
                choice.reserved_length = length
            self._prefill.tasks.append(self._waiting.popleft())
            self.update_reservations()
            admitted = True
        return admitted

    def cancel(self, request_id: int) -> tuple[list[PrefillTask], list[Sequence]]:
        """Drop a request's tasks; return them, and its decoding sequences, which are still to be removed."""
        dropped = [task for task in [*self._waiting, *self._prefill.tasks] if task.request.id == request_id]
        for task in dropped:
            task.request.unqueued.clear()
        self._waiting = deque(task for task in self._waiting if task not in dropped)
        self._prefill.tasks = [task for task in self._prefill.tasks if task not in dropped]
        return dropped, [sequence for sequence in self.decoding.values() if sequence.request.id == request_id]

    # Decoding

    def plan_decode(self) -> StepPlan | None:
        """Return the next decode step, or None if no sequence decodes.

        Prompts that arrive together are processed before any of them decodes: a decode step of few sequences takes
        almost as long as one of all.
        """
        self._in_burst = bool(self.decoding) and self._prefill.has_short(self._burst_tokens)
        if not self.decoding or self._in_burst:
            return None
        self._burst_tokens = 0
        return StepPlan(decode=tuple(tuple(batch) for batch in self._batches.batches))

    def record_decode(self, tokens: dict[SequenceId, int]) -> None:
        """Record how many tokens each sequence got."""
        self._batches.advance(tokens)

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Remove decoding sequences."""
        sequences = list(sequences)
        ids = [sequence.id for sequence in sequences]
        for id_ in ids:
            del self.decoding[id_]
        self._batches.remove(ids)
        self._waiting.extend(task for sequence in sequences for task in sequence.request.next_tasks(1))
        self.update_reservations()

    def extend_reservations(self) -> list[Sequence]:
        """Reserve more memory for sequences that need it; return those to preempt, youngest first."""
        extended = False
        for sequence in self.decoding.values():
            choice = sequence.choice
            if sequence.length >= choice.reserved_length < sequence.max_length:
                choice.reserved_length = min(choice.reserved_length + RESERVED_TOKENS, sequence.max_length)
                extended = True
        if not extended:
            return []
        running = list(self.decoding.values())
        preempted = []
        _, joining = self._reserved_lengths()
        while len(running) > 1 and not self._memory.fits(
            [sequence.choice.reserved_length for sequence in running], joining, self._image_bytes()
        ):
            preempted.append(running.pop())
        if not preempted:  # otherwise their removal updates the reservations
            self.update_reservations()
        return preempted

    def requeue(self, sequence: Sequence) -> None:
        """Put a preempted sequence at the head of the queue."""
        self._waiting.appendleft(PrefillTask.from_request(sequence.request, [sequence.choice]))

    # Prefill

    def begin_prefill(self) -> bool:
        """Begin a step's prefill passes; return whether there are any."""
        self._budget = None
        if not self.decoding:
            self._burst_tokens = self._chunk_sizer.burst_tokens
        self._shared = bool(self.decoding) and not self._in_burst
        return bool(self._prefill.tasks)

    def plan_prefill(self) -> StepPlan | None:
        """Return the next prefill pass of this step, or None if its token budget is used up."""
        if self._completed and not self._shared:
            return None  # requests that have arrived meanwhile may join the next pass
        if self._budget is not None and self._budget < EFFICIENT_TOKENS:
            return None
        task = self._prefill.next_task(self._burst_tokens if self._in_burst else None)
        if task is None:
            return None
        self._memory.set_context(task.prefilled)
        if self._budget is None:
            self._budget = self._chunk_sizer.tokens(shared=self._shared)
        if task.unencoded:
            return StepPlan(encode=self._image_stages(task))
        tasks = self._prefill.batchable(task, self._budget if self._shared else self._chunk_sizer.burst_pass_tokens)
        self._memory.set_context(max(task.prefilled for task in tasks))
        if len(tasks) > 1:
            return StepPlan(prefill=tuple(_last_chunk(task) for task in tasks))
        count = self._prefill.chunk_tokens(task, min(self._budget, self._chunk_sizer.max_tokens))
        return StepPlan(prefill=(self._chunk(task, task.prefilled + count),))

    def tasks(self, plan: StepPlan) -> list[PrefillTask]:
        """Return the tasks whose prompts a plan processes."""
        by_id = {task.id: task for task in self._prefill.tasks}
        chunks = [plan.encode] if plan.encode else plan.prefill
        return [by_id[chunk.prompt] for chunk in chunks]

    def take_started(self) -> list[PrefillTask]:
        """Return the tasks whose prefill has begun since the last call."""
        started, self._prefill.started = self._prefill.started, []
        return started

    def record_prefill(self, plan: StepPlan, seconds: float) -> None:
        """Record that a pass is complete, and how long it took."""
        assert self._budget is not None, "a pass is planned before it is recorded"
        if plan.encode is not None:
            self._record_encoding(plan.encode, seconds)
            return
        self._chunk_sizer.record_prefill(plan.prefill_tokens, seconds)
        self._budget -= plan.prefill_tokens + self._chunk_sizer.pass_tokens
        if self._in_burst:
            self._burst_tokens -= plan.prefill_tokens
        tasks = self.tasks(plan)
        for task, chunk in zip(tasks, plan.prefill, strict=True):
            task.prefilled = chunk.end
            if chunk.checkpoint:
                task.checkpoints.pop()
            if chunk.last:
                self._prefill.tasks.remove(task)
        if plan.prefill[0].last:
            self._completed.append(tasks)

    def _image_stages(self, task: PrefillTask) -> ImageStages:
        """Return the stages of a task's next image that fit into this step; all of them if its features are cached."""
        index, start = task.unencoded[0], task.encoded_stages
        image = task.request.images[index]
        count = image.stages - start
        if image.key not in self._features:
            count = min(count, self._chunk_sizer.image_stages(image.patches, shared=self._shared))
        return ImageStages(task.id, index, start, start + count)

    def _record_encoding(self, stages: ImageStages, seconds: float) -> None:
        assert self._budget is not None, "a pass is planned before it is recorded"
        (task,) = self.tasks(StepPlan(encode=stages))
        image = task.request.images[stages.image]
        self._budget -= self._chunk_sizer.record_image(image.patches, stages.end - stages.start, seconds)
        task.encoded_stages = stages.end
        if stages.end == image.stages:
            task.unencoded.popleft()
            task.encoded_stages = 0

    def start_decoding(self) -> list[list[PrefillTask]]:
        """Move completed prompts to the decode batches; return them, grouped by the pass that completed them."""
        completed, self._completed = self._completed, []
        for tasks in completed:
            self._batches.add({sequence.id: len(task.tokens) for task in tasks for sequence in task.sequences})
            self.decoding |= {sequence.id: sequence for task in tasks for sequence in task.sequences}
        return completed

    # Memory

    def update_reservations(self) -> None:
        """Recompute the reserved memory, and leave the rest to the prefix cache."""
        decoding, joining = self._reserved_lengths()
        self.reserved_bytes = self._memory.peak_bytes(decoding, joining, self._image_bytes())
        rest = self._memory.spare_bytes(self.reserved_bytes, decoding, joining)
        if rest is not None:
            self._features.set_cap(rest)
            self._prefix_cache.set_cap(rest - self._features.nbytes)

    def _image_bytes(self, *others: PrefillTask) -> int:
        """Return the memory for the images of prompts in the prefill queue and of `others`."""
        return image_bytes([image for task in (*self._prefill.tasks, *others) for image in task.request.images])

    def _reserved_lengths(self) -> tuple[list[int], list[int]]:
        """Return the lengths that decoding and joining sequences may grow to."""
        tasks = [*self._prefill.tasks, *self._completed_tasks()]
        joining = [choice.reserved_length for task in tasks for choice in task.choices]
        return [sequence.choice.reserved_length for sequence in self.decoding.values()], joining

    def _completed_tasks(self) -> list[PrefillTask]:
        return [task for tasks in self._completed for task in tasks]

    def _chunk(self, task: PrefillTask, end: int) -> PrefillChunk:
        last = end == len(task.tokens)
        if task.scoring:
            return PrefillChunk(task.id, task.prefilled, end, last, score=True)
        store, checkpoint = self._prefill.stores(task, end)
        return PrefillChunk(task.id, task.prefilled, end, last, store=store, checkpoint=checkpoint)


def _last_chunk(task: PrefillTask) -> PrefillChunk:
    return PrefillChunk(
        task.id, task.prefilled, len(task.tokens), last=True, store=task.prefilled < task.recurring_length
    )


def _reserved_length(task: PrefillTask, sequence: Sequence) -> int:
    """Return the length up to which memory is reserved when a sequence starts."""
    remaining = sequence.max_length - sequence.length
    return len(task.tokens) + (remaining if task.request.bounded else min(remaining, RESERVED_TOKENS))


def _apply_memory_limit(request: EngineRequest, limit: int) -> None:
    """Lower `max_tokens` to what fits into memory.

    Raises:
        RequestExceedsMemory: the prompt, or the number of tokens that the client wants, does not fit.
    """
    needed = request.longest_prompt + (request.max_tokens if request.bounded else 1)
    if needed > limit:
        prompt_fits = request.longest_prompt < limit and request.bounded
        raise RequestExceedsMemory(
            f"{len(request.choices)} choice(s) of {needed} tokens each, prompt included, do not fit into the memory of "
            f"this model; the limit is {limit} tokens each",
            location=("max_tokens",) if prompt_fits else ("prompt",),
        )
    request.max_tokens = min(request.max_tokens, limit - request.longest_prompt)
