"""Remove secrets (tokens, keys, passwords, signatures) from text that is kept or shown. Pure.

This is the last line of defense, for text that no one expects to contain a secret: a library's exception with a full
URL in it, or a worker's stderr. Values known to be secret must not get this far.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MASK = "[redacted]"

# Names whose value is a secret end like this: `HF_TOKEN`, `x-api-key`, `X-Amz-Signature`. Names of token counts end
# with an "s" and do not match.
_NAME = (
    r"[\w-]*(?:token|api[_-]?key|secret|password|passwd|passphrase|credential|authorization|cookie|signature)"
    r"|(?:x-amz-[\w-]+|sig|key-pair-id)"
)
_SECRET_NAME = re.compile(rf"(?i:{_NAME})")

# Text without any of these cannot match a rule below. Most text has none.
_HINTS = (
    *("hf_", "api_org_", "sk-", "bearer", "://", "token", "key", "secret", "passw", "passph", "credential"),
    *("authoriz", "cookie", "sig", "x-amz-"),
)

# Every rule runs in linear time on any input, because prompts may be logged.
_RULES = (
    # Tokens with a recognizable prefix: Hugging Face's, OpenAI's, and the daemon's own API keys.
    (re.compile(r"\b(hf_|api_org_|sk-|osk-)[A-Za-z0-9_.-]{6,}"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(bearer)\s+[^\s\"',;]+"), rf"\1 {MASK}"),
)
_NAMED_VALUE = re.compile(
    rf"(?i)(?<![\w-])({_NAME})(\\?[\"']?\s*[:=]\s*(?:b?\\?[\"'])?(?:(?:basic|bearer|digest)\s+)?+)"
    rf"(?!{re.escape(MASK)})([^\s\"'\\,;&)}}\]]+)"
)
_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30}://)([^\s\"'<>]+)")


def redact(text: str) -> str:
    """Mask everything in `text` that looks like a secret, keeping its name or prefix."""
    lower = text.lower()
    if not any(hint in lower for hint in _HINTS):
        return text
    text = _URL.sub(_redact_url, text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return _NAMED_VALUE.sub(_redact_named_value, text)


def redact_value(value: Any) -> Any:
    """Redact a log value and convert it to JSON types. The value of a secret name is masked."""
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return redact_fields(value)
    if isinstance(value, list | tuple):
        return [redact_value(item) for item in value]
    return redact(repr(value))


def redact_fields(fields: Mapping[Any, Any]) -> dict[Any, Any]:
    """Redact a mapping whose keys are names."""
    return {
        key: MASK if isinstance(value, str) and _is_secret_name(key) else redact_value(value)
        for key, value in fields.items()
    }


def _redact_named_value(match: re.Match[str]) -> str:
    """Mask the value, unless the match is prose: `a token: that is` contains no secret."""
    name, separator, value = match.groups()
    is_prose = separator.strip() == ":" and name.isalpha() and name.islower() and not any(map(str.isdigit, value))
    return match[0] if is_prose else f"{name}{separator}{MASK}"


def _redact_url(match: re.Match[str]) -> str:
    """Mask the user info of a URL (proxy passwords) and its query (signatures)."""
    scheme, rest = match.groups()
    location, question_mark, query = rest.partition("?")
    authority, slash, path = location.partition("/")
    _, at, host = authority.rpartition("@")
    return f"{scheme}{MASK + at if at else ''}{host}{slash}{path}{question_mark}{MASK if query else ''}"


@lru_cache(maxsize=1024)
def _is_secret_name(key: object) -> bool:
    return isinstance(key, str) and _SECRET_NAME.fullmatch(key) is not None
