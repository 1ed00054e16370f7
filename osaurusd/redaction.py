"""Takes secrets out of texts that are kept or shown: tokens, keys, passwords and signatures. Pure.

The last defence, for what nobody thought of: an exception of a library that has the whole address in it, a worker's
last words. What is known to be secret is not put there in the first place.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MASK = "[redacted]"

# A name that ends like this has a secret for a value: `HF_TOKEN`, `x-api-key`, `X-Amz-Signature`. Counts of tokens end
# with an s.
_NAME = (
    r"[\w-]*(?:token|api[_-]?key|secret|password|passwd|passphrase|credential|authorization|cookie|signature)"
    r"|(?:x-amz-[\w-]+|sig|key-pair-id)"
)
_SECRET_NAME = re.compile(rf"(?i:{_NAME})")

# What one of the rules below could find anything in; most texts hold none of it.
_HINTS = (
    *("hf_", "api_org_", "sk-", "bearer", "://", "token", "key", "secret", "passw", "passph", "credential"),
    *("authoriz", "cookie", "sig", "x-amz-"),
)

# Every rule takes time in proportion to the text, whatever it is: prompts may be logged.
_RULES = (
    # Tokens that say what they are: Hugging Face's, and the keys of OpenAI's clients and ours.
    (re.compile(r"\b(hf_|api_org_|sk-|osk-)[A-Za-z0-9_.-]{6,}"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(bearer)\s+[^\s\"',;]+"), rf"\1 {MASK}"),
)
_NAMED = re.compile(
    rf"(?i)(?<![\w-])({_NAME})(\\?[\"']?\s*[:=]\s*(?:b?\\?[\"'])?(?:(?:basic|bearer|digest)\s+)?+)"
    rf"(?!{re.escape(MASK)})([^\s\"'\\,;&)}}\]]+)"
)
_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30}://)([^\s\"'<>]+)")


def redacted(text: str) -> str:
    """`text` without what looks like a secret; who reads it still sees what kind of thing was there."""
    lower = text.lower()
    if not any(hint in lower for hint in _HINTS):
        return text
    text = _URL.sub(_without_secrets, text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return _NAMED.sub(_without_value, text)


def redacted_value(value: Any) -> Any:
    """Whatever is logged, as something that JSON knows, without secrets; what has a secret's name is one."""
    if isinstance(value, str):
        return redacted(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return redacted_fields(value)
    if isinstance(value, list | tuple):
        return [redacted_value(each) for each in value]
    return redacted(repr(value))


def redacted_fields(fields: Mapping[Any, Any]) -> dict[Any, Any]:
    """`redacted_value` for a mapping; its keys are names."""
    return {
        key: MASK if isinstance(value, str) and _is_secret(key) else redacted_value(value)
        for key, value in fields.items()
    }


def _without_value(named: re.Match[str]) -> str:
    """The name and what stands between, unless it is prose: `a token: that is` has no secret in it."""
    name, between, value = named.groups()
    prose = between.strip() == ":" and name.isalpha() and name.islower() and not any(map(str.isdigit, value))
    return named[0] if prose else f"{name}{between}{MASK}"


def _without_secrets(url: re.Match[str]) -> str:
    """An address without what stands before the host, which is how proxies are given passwords, and without its query,
    where addresses that are signed have the signature."""
    scheme, rest = url.groups()
    place, asked, query = rest.partition("?")
    authority, slash, path = place.partition("/")
    _, at, host = authority.rpartition("@")
    return f"{scheme}{MASK + at if at else ''}{host}{slash}{path}{asked}{MASK if query else ''}"


@lru_cache(maxsize=1024)
def _is_secret(key: object) -> bool:
    return isinstance(key, str) and _SECRET_NAME.fullmatch(key) is not None
