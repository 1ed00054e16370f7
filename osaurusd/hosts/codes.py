"""Pairing codes: what a person carries from one host to the other, and the proofs that a side knows it."""

import hmac
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from osaurusd.errors import InvalidRequest
from osaurusd.log import get_logger

log = get_logger(__name__)

PROTOCOL = "osaurusd pairing 1"
MAX_WRONG_PROOFS = 5
CODE_SECONDS = 600.0

# Crockford's base 32, without characters that resemble others: 16 characters are 80 bits.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CODE_LENGTH = 16
_GROUP_LENGTH = 4
_LOOKALIKES = str.maketrans("OIL", "011", "- \t")


class Transcript(NamedTuple):
    """What both sides prove to have seen."""

    responder_fingerprint: str
    initiator_fingerprint: str
    responder_nonce: str
    initiator_nonce: str
    name: str
    endpoint: str

    def proof(self, role: str, code: str) -> str:
        """Return the proof that `role`, `initiator` or `responder`, knows the code. Neither can repeat the other's."""
        message = msgspec.json.encode([PROTOCOL, role, *self])
        return hmac.digest(code.encode(), message, "sha256").hex()


class _Offer(msgspec.Struct):
    code: str
    expires_at: float
    wrong_proofs: int = 0


class CodeOffer:
    """The code that this host offers at the moment, if any.

    Args:
        clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._offer: _Offer | None = None

    def renew(self) -> str:
        """Offer a new code, which replaces the current one, for `CODE_SECONDS`."""
        code = "".join(secrets.choice(_ALPHABET) for _ in range(_CODE_LENGTH))
        self._offer = _Offer(code, self._clock() + CODE_SECONDS)
        groups = [code[start : start + _GROUP_LENGTH] for start in range(0, _CODE_LENGTH, _GROUP_LENGTH)]
        return "-".join(groups)

    def withdraw(self) -> None:
        self._offer = None

    def verify(self, transcript: Transcript, proof: str) -> str | None:
        """Check an initiator's proof. Return the responder's, or None if it is wrong or no code is offered.

        A wrong one counts, and the last that is allowed withdraws the code. The caller withdraws it after a right one.
        """
        if self._offer is not None and self._clock() >= self._offer.expires_at:
            self.withdraw()
        offer = self._offer
        if offer is None:
            return None
        if is_equal(transcript.proof("initiator", offer.code), proof):
            return transcript.proof("responder", offer.code)
        offer.wrong_proofs += 1
        if offer.wrong_proofs >= MAX_WRONG_PROOFS:
            log.warning("pairing code withdrawn", wrong_attempts=offer.wrong_proofs)
            self.withdraw()
        return None


def is_equal(expected: str, given: str) -> bool:
    """Whether two proofs are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogatepass"))


def normalize_code(text: str) -> str:
    """Return a code as it was offered, regardless of case, separators, and the letters O, I and L for digits.

    Raises:
        InvalidRequest: it cannot be a code.
    """
    code = text.strip().upper().translate(_LOOKALIKES)
    if len(code) != _CODE_LENGTH or any(character not in _ALPHABET for character in code):
        raise InvalidRequest(
            f"`code`: not a pairing code, which has {_CODE_LENGTH} letters and digits, such as 7K2M-0QXT-93FB-VHZC",
            param="code",
        )
    return code
