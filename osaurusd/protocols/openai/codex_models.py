"""The model catalog that Codex requests: entries of `models` in `GET /models?client_version=VERSION`.

Codex ignores a catalog in which an entry lacks one of these fields.
"""

from typing import Literal

import msgspec

from osaurusd.models.record import ModelRecord

_INSTRUCTIONS = """\
You are Codex, a coding agent that runs in the user's terminal. Work in the current folder on the user's task.

- Read files and run commands with the tools that you have. Look at the code before you change it.
- Make the smallest change that solves the task, in the style of the existing code. Do not revert changes of the user.
- Check your work: run the tests or the program if that is possible.
- Be brief. At the end, say what you changed and what remains to be done.
"""

_EFFORTS = (("low", "Short reasoning"), ("medium", "Balanced reasoning"), ("high", "Long reasoning"))


class ReasoningLevel(msgspec.Struct, frozen=True, kw_only=True):
    effort: str
    description: str


class TruncationPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a command's output the model sees."""

    mode: Literal["tokens"] = "tokens"
    limit: int


class CodexModel(msgspec.Struct, frozen=True, kw_only=True):
    """How Codex uses a model."""

    slug: str
    display_name: str
    description: str | None = None
    supported_reasoning_levels: list[ReasoningLevel]
    default_reasoning_level: str | None
    shell_type: Literal["shell_command"] = "shell_command"
    visibility: Literal["list"] = "list"
    supported_in_api: bool = True
    priority: int = 0
    base_instructions: str = _INSTRUCTIONS
    supports_reasoning_summaries: bool
    support_verbosity: bool = False
    truncation_policy: TruncationPolicy
    supports_parallel_tool_calls: bool
    experimental_supported_tools: tuple[()] = ()
    input_modalities: tuple[Literal["text", "image"], ...]
    context_window: int | None

    @classmethod
    def from_record(cls, record: ModelRecord, name: str) -> "CodexModel":
        reasons = record.capabilities.reasoning
        levels = [ReasoningLevel(effort=effort, description=description) for effort, description in _EFFORTS]
        return cls(
            slug=name,
            display_name=name,
            supported_reasoning_levels=levels if reasons else [],
            default_reasoning_level="medium" if reasons else None,
            supports_reasoning_summaries=reasons,
            truncation_policy=TruncationPolicy(limit=_output_tokens(record.context_length)),
            supports_parallel_tool_calls=record.capabilities.tools,
            input_modalities=record.capabilities.input_modalities,
            context_window=record.context_length,
        )


def _output_tokens(context_length: int | None) -> int:
    """Return how much of a command's output fits into the context several times."""
    return min(10_000, (context_length or 80_000) // 8)
