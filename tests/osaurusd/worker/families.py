"""Tokenizers of well-known model families: SmolLM2's tokenizer with their special tokens and chat templates."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer


class Family(NamedTuple):
    """A model family; `tokens` are appended to SmolLM2's vocabulary."""

    tokens: list[str]
    template: str


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% set tool_call = c.function %}\n<tool_call>\n"
    '{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
_TOOLS = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"

FAMILIES = {
    "qwen3": Family(
        ["<think>", "</think>", "<tool_call>", "</tool_call>"],
        _TOOLS + _CHATML + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
    ),
    "deepseek-r1": Family(
        ["<think>", "</think>"],
        "{% if not add_generation_prompt is defined %}{% set tools = [] %}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ '```json\n' + c.function.arguments + '\n```' }}{% endfor %}{% endfor %}"
        "{{ '<assistant><think>\n' }}",
    ),
    "llama3": Family(
        ["<|python_tag|>"],
        _TOOLS + "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n",
    ),
    "mistral": Family(
        ["[TOOL_CALLS]", "[ARGS]"],
        _TOOLS + "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
        "{% endfor %}{% endfor %}[assistant]",
    ),
    "lfm2": Family(
        ["<|tool_call_start|>", "<|tool_call_end|>", "<|tool_list_start|>"],
        "{% if tools %}<|tool_list_start|>{{ tools | tojson }}{% endif %}" + _CHATML,
    ),
    "codestral": Family(["[PREFIX]", "[SUFFIX]"], _CHATML),
    "qwen-coder": Family(["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"], _CHATML),
    "gemma4": Family(["<|channel>", "<channel|>"], _CHATML),
}


def tokenizer_factory(base: Path, folder: Path) -> Callable[[str], TokenizerWrapper]:
    """Return a cached function that creates the tokenizer of a family by name.

    Args:
        base: a folder with SmolLM2's tokenizer.
        folder: where the tokenizers are written.
    """
    return functools.cache(lambda name: _make(FAMILIES[name], base, folder / name))


def _make(family: Family, base: Path, folder: Path) -> TokenizerWrapper:
    folder.mkdir()
    content = json.loads((base / "tokenizer.json").read_text())
    first_id = max(content["model"]["vocab"].values()) + 1
    content["added_tokens"] += [
        {"id": first_id + offset, "content": token, "special": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for offset, token in enumerate(family.tokens)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    shutil.copyfile(base / "tokenizer_config.json", folder / "tokenizer_config.json")
    (folder / "chat_template.jinja").write_text(family.template)
    return load_tokenizer(folder, {"trust_remote_code": False})
