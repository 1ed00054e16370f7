"""Prompts and answers in the log, for those who have asked for that with `log.content`."""

import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence

import msgspec

from osaurusd import log
from osaurusd.inference.events import Delta, Event
from osaurusd.inference.request import GenerationRequest

logger = log.get_logger(__name__)


async def logged(events: AsyncGenerator[Event], orders: Sequence[GenerationRequest]) -> AsyncGenerator[Event]:
    """The events as they come. What was asked is logged before them, what was answered after, complete or not."""
    logger.info("prompt", prompts=[msgspec.to_builtins(order.prompt) for order in orders])
    answers: defaultdict[int, list[str]] = defaultdict(list)
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, Delta):
                    calls = [f"{call.name or ''}{call.arguments}" for call in event.tool_calls]
                    answers[event.index] += [event.reasoning, event.text, *calls]
                yield event
    finally:
        logger.info("answer", answers={str(index): "".join(parts) for index, parts in sorted(answers.items())})
