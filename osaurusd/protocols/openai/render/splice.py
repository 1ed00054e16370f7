"""Writing the chunks of one stream, of which there are as many as tokens."""

import msgspec

from osaurusd.inference.events import Completed
from osaurusd.protocols.openai.render.envelope import usage

_encode = msgspec.json.Encoder().encode


class Splicer:
    """Encodes once what all chunks of a stream have in common, and splices in what each one brings.

    Args:
        head: the members that chunks begin with, as an object.
        include_usage: whether chunks have a `usage`, null in all but the last one.
    """

    def __init__(self, head: msgspec.Struct, include_usage: bool) -> None:
        self._head = _encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}' if include_usage else b"]}"

    def chunk(self, choice: msgspec.Struct) -> bytes:
        """A chunk with this one choice."""
        return b"".join((self._head, _encode(choice), self._tail))

    def usage(self, done: Completed) -> bytes:
        """The last chunk: no choices, but what the reply took."""
        return b"".join((self._head, b'],"usage":', _encode(usage(done)), b"}"))
