"""The shape of a JSON text, found out without building what it says: how many values, how deep."""

from dataclasses import dataclass

# Everything but brackets, and all brackets as braces.
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BRACES = bytes.maketrans(b"[]", b"{}")


@dataclass(frozen=True)
class Outline:
    """`members` of objects and `values` of any kind in a text, at all depths, and its brackets as braces."""

    members: int
    values: int
    brackets: bytes

    def is_deeper_than(self, levels: int) -> bool:
        """Whether objects and arrays are nested in each other more than so many times; the text must be JSON."""
        left = self.brackets
        if left.count(b"{") <= levels:
            return False
        for _ in range(levels):
            left = left.replace(b"{}", b"")
            if not left:
                return False
        return True


def outline(text: bytes, most: int) -> Outline | None:
    """The outline of a text, right if that is JSON; None if it has more than twice as many strings as `most`.

    All passes are over bytes and in C: for usual bodies they take about as long as decoding does.
    """
    if b"\\" in text:
        # Escapes are read from left to right, so after this every quote begins or ends a string.
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > 4 * most:
        return None
    outside = b"".join(text.split(b'"')[::2])
    openers = outside.count(b"{") + outside.count(b"[")
    return Outline(
        members=outside.count(b":"),
        values=outside.count(b",") + openers + 1,
        brackets=outside.translate(_BRACES, _NO_BRACKETS),
    )
