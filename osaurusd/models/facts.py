"""What `show` tells beyond a record: facts that need more files than a scan reads. Blocking; run in a thread."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osaurusd.models import describe
from osaurusd.models.record import ModelRecord

_MAX_TEXT_BYTES = 1_000_000

# What chat templates of models with these abilities do: walk over `tools`, open a block of thoughts.
_TOOLS = re.compile(r"\btools\b")
_REASONING = re.compile(r"<think>|</think>|enable_thinking|reasoning_content|<\|channel\|?>")
_LICENCE = re.compile(r"^license(?:_name)?:\s*([^\s#]+)", re.MULTILINE)
_VISION_KEYS = ("vision_config", "vision_tower", "mm_vision_tower", "image_token_id", "image_token_index")


@dataclass(frozen=True)
class Facts:
    """`commit` is the hub revision; the abilities are what chat template and config give away."""

    commit: str | None
    licence: str | None
    tools: bool
    reasoning: bool
    vision: bool


def gather(record: ModelRecord) -> Facts:
    """Read the facts of one model; files that are missing, broken or not to be read say nothing."""
    folder = record.path
    if record.escapes:
        return Facts(commit=None, licence=None, tools=False, reasoning=False, vision=False)
    config = _object(folder / "config.json")
    template = _template(folder)
    return Facts(
        commit=folder.name if folder.parent.name == "snapshots" else None,
        licence=_licence(folder, config),
        tools=_TOOLS.search(template) is not None,
        reasoning=_REASONING.search(template) is not None,
        vision=any(key in config for key in _VISION_KEYS),
    )


def _template(folder: Path) -> str:
    """The chat template: a file of its own, or a string or list of named ones in the tokenizer's config."""
    if text := _text(folder / "chat_template.jinja"):
        return text
    for name in ("tokenizer_config.json", "chat_template.json"):
        template = _object(folder / name).get("chat_template")
        if isinstance(template, str):
            return template
        if isinstance(template, list):
            return "\n".join(str(entry.get("template", "")) for entry in template if isinstance(entry, dict))
    return ""


def _licence(folder: Path, config: dict[str, Any]) -> str | None:
    """From the front matter of the model card, what an import recorded, or the config."""
    card = _text(folder / "README.md")
    if card.startswith("---") and (found := _LICENCE.search(card.split("\n---", 1)[0])):
        return found[1]
    for source in (_object(folder / "osaurus.json"), config):
        if isinstance(licence := source.get("license"), str):
            return licence
    return None


def _object(path: Path) -> dict[str, Any]:
    try:
        return describe.read_object(path)
    except (OSError, ValueError):
        return {}


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_TEXT_BYTES)
    except OSError:
        return ""
