"""A link opens one session, once; the session ends after its time, or when the link is used again."""

import pytest

from osaurusctl.ui.sessions import LINK_SECONDS, SESSION_SECONDS, Sessions


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def new_links():
    return []


@pytest.fixture
def sessions(clock, new_links):
    return Sessions(new_links.append, clock)


def test_link_opens_a_session_of_twelve_hours(sessions, clock):
    session = sessions.open(sessions.create_link())
    assert session.expires_at == clock.now + SESSION_SECONDS == clock.now + 12 * 3600
    assert sessions.find(session.secret) is session
    clock.now += SESSION_SECONDS
    assert sessions.find(session.secret) is None


def test_link_that_is_used_twice_ends_its_session_and_is_replaced(sessions, new_links):
    link = sessions.create_link()
    session = sessions.open(link)
    assert sessions.open(link) is None
    assert sessions.find(session.secret) is None
    (replacement,) = new_links
    assert sessions.open(link) is None
    assert sessions.open(replacement) is not None


def test_link_expires_and_is_replaced(sessions, clock, new_links):
    link = sessions.create_link()
    clock.now += LINK_SECONDS
    assert sessions.open(link) is None
    assert len(new_links) == 1


@pytest.mark.parametrize("token", ["", "wrong", "\udcff", "é"])
def test_wrong_token_opens_nothing_and_ends_nothing(sessions, new_links, token):
    session = sessions.open(sessions.create_link())
    assert sessions.open(token) is None
    assert sessions.find(token) is None
    assert sessions.find(session.secret) is session
    assert new_links == []


def test_ended_session_is_gone(sessions):
    session = sessions.open(sessions.create_link())
    sessions.end(session)
    assert sessions.find(session.secret) is None


def test_secrets_differ_and_are_long(sessions):
    links = {sessions.create_link() for _ in range(10)}
    secrets = {sessions.open(link).secret for link in links}
    assert len(links | secrets) == 20
    assert min(map(len, links | secrets)) >= 43
