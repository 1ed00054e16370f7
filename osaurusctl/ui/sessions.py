"""Access to the management page: a link that works once, and the session that it opens.

The session is a secret that the page keeps and sends as `Authorization: Bearer`. It is not a cookie: browsers send the
cookies of a host to all of its ports, so every other local server would receive it.
"""

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

LINK_SECONDS = 10 * 60
"""How long a link works."""

SESSION_SECONDS = 12 * 3600

_SECRET_BYTES = 32


@dataclass(frozen=True)
class Session:
    """An open session; `expires_at` is in Unix seconds."""

    secret: str
    expires_at: float


@dataclass
class _Link:
    token: str
    expires_at: float
    session: Session | None = None


class Sessions:
    """The links of one run, and their sessions.

    Args:
        report_new_link: called with the token of a new link if one was used twice or too late.
        clock: Unix seconds.
    """

    def __init__(self, report_new_link: Callable[[str], None], clock: Callable[[], float] = time.time) -> None:
        self._report_new_link = report_new_link
        self._clock = clock
        self._links: list[_Link] = []

    def create_link(self) -> str:
        """Return the token of a new link."""
        link = _Link(secrets.token_urlsafe(_SECRET_BYTES), self._clock() + LINK_SECONDS)
        self._links.append(link)
        return link.token

    def open(self, token: str) -> Session | None:
        """Open the session of a link; None if the token is wrong, used or too old.

        A link that is used twice may have been seen by another user of the machine, so that its session ends.
        """
        link = next((link for link in self._links if _equal(link.token, token)), None)
        if link is None:
            return None
        if link.session is None and self._clock() < link.expires_at:
            link.session = Session(secrets.token_urlsafe(_SECRET_BYTES), self._clock() + SESSION_SECONDS)
            return link.session
        self._links.remove(link)
        self._report_new_link(self.create_link())
        return None

    def find(self, secret: str) -> Session | None:
        """Return an open session."""
        sessions = [link.session for link in self._links if link.session is not None]
        found = next((session for session in sessions if _equal(session.secret, secret)), None)
        return found if found is not None and self._clock() < found.expires_at else None

    def end(self, session: Session) -> None:
        """End a session."""
        self._links = [link for link in self._links if link.session is not session]


def _equal(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode(), right.encode("utf-8", "surrogateescape"))
