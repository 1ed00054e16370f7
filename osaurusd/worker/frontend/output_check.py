"""Checks complete outputs against those parts of a schema that a grammar cannot enforce."""

import json
from collections.abc import Mapping
from typing import Any

_MAX_REASON_LENGTH = 300
_MAX_BACKTRACKING = 100_000


class OutputCheck:
    """Checks an output. Safe on any thread.

    Args:
        validator: of the output, if it is one value.
        by_tool: if the output consists of tool calls, the validators of the arguments, for the tools that need one.
    """

    def __init__(self, validator: Any = None, by_tool: Mapping[str, Any] | None = None) -> None:
        self._validator = validator
        self._by_tool = by_tool or {}

    def check(self, text: str) -> str | None:
        """Return why the output does not conform, or None. Of several calls, only the last one is checked."""
        validator = self._validator
        try:
            value = _last_value(text)
        except ValueError:
            # A call whose argument is text, which its grammar covers, is the last one.
            return None
        if validator is None:
            validator, value = self._by_tool.get(value["name"]), value["arguments"]
        error = None if validator is None else next(iter(validator.iter_errors(value)), None)
        if error is None:
            return None
        return (
            f"{error.message[:_MAX_REASON_LENGTH]}; the schema forbids this with a keyword that can only be checked "
            "afterwards; try again, or simplify the schema"
        )


def build_validator(schema: dict[str, Any]) -> Any:
    """Build the validator of a schema.

    Raises:
        ValueError: the schema is invalid, refers to another server, or has a regular expression that is not supported.
    """
    # Most requests need no checks, and the library is large.
    import jsonschema_rs  # noqa: PLC0415

    # Look-around takes time that depends on the text; everything else is linear.
    options = jsonschema_rs.FancyRegexOptions(backtrack_limit=_MAX_BACKTRACKING)
    try:
        return jsonschema_rs.validator_for(schema, validate_formats=False, pattern_options=options, offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        raise ValueError(getattr(error, "message", str(error))) from error


def _last_value(text: str) -> Any:
    """Decode the last of several JSON values."""
    decoder, position, value = json.JSONDecoder(), 0, None
    text = text.strip()
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        position += len(text[position:]) - len(text[position:].lstrip())
    return value
