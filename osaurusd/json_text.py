"""Repair of JSON text that is valid except for halves of surrogate pairs, which text in UTF-8 cannot represent.

Programs that cut text at UTF-16 code units, such as JavaScript's `slice`, produce them. A chat whose history contains
one would otherwise be rejected forever.
"""

import re

_ESCAPED_REPLACEMENT = b"\\ufffd"
_ESCAPE_LENGTH = 6
# A pair, or one half. The common prefix keeps the search fast.
_SURROGATES = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?P<low>\\u[dD][c-fC-F][0-9a-fA-F]{2})?|[c-fC-F][0-9a-fA-F]{2})"
)
# A surrogate in the encoding of UTF-8, as Python's `surrogatepass` writes it. These bytes occur in no valid UTF-8.
_RAW_SURROGATE = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")

# Limits on the work, so that no body blocks the event loop.
_MAX_ESCAPES = 300_000
_MAX_BACKSLASHES = 100


def replace_lone_surrogates(json: bytes) -> bytes:
    """Replace every half of a surrogate pair in JSON text by U+FFFD, whether escaped or encoded."""
    return _SURROGATES.sub(_repair, _RAW_SURROGATE.sub("\ufffd".encode(), json), count=_MAX_ESCAPES)


def _repair(match: re.Match[bytes]) -> bytes:
    if _is_escaped(match.string, match.start()):  # the text `\ud83d`, not an escape
        return match[0][:_ESCAPE_LENGTH] + (_ESCAPED_REPLACEMENT if match["low"] else b"")
    return match[0] if match["low"] else _ESCAPED_REPLACEMENT


def _is_escaped(json: bytes, position: int) -> bool:
    """Whether an odd number of backslashes precedes the position."""
    start = max(position - _MAX_BACKSLASHES, 0)
    preceding = json[start:position]
    return bool((len(preceding) - len(preceding.rstrip(b"\\"))) % 2)
