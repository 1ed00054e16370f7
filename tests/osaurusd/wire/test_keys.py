"""What is said of API keys travels unharmed; requests are strict, and names harmless."""

import msgspec
import pytest

from osaurusd.wire.keys import KeyInfo, KeyRequest, KeyRoute, NewKey, Protection, RevokeRequest

REPLIES = [
    KeyInfo(id="a", name=None, created=1),
    KeyInfo(id="a", name="ü", created=1, last_used=3600),
    NewKey(id="a", name=None, created=1, key="sk-osaurus-x"),
    Protection(),
    Protection(exposed=True, key_required=True, trusts_loopback=True, keys=2, tls=True),
]


@pytest.mark.parametrize("value", [*REPLIES, KeyRequest(), KeyRequest(name="n"), RevokeRequest(id="a")])
def test_what_is_sent_is_what_arrives(value):
    assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


@pytest.mark.parametrize("reply", REPLIES)
def test_replies_may_have_fields_that_are_not_known_yet(reply):
    newer = msgspec.to_builtins(reply) | {"not_known_yet": 1}
    assert msgspec.convert(newer, type(reply)) == reply


@pytest.mark.parametrize(("kind", "least"), [(KeyRequest, {}), (RevokeRequest, {"id": "a"})])
def test_requests_may_not_have_unknown_fields(kind, least):
    with pytest.raises(msgspec.ValidationError, match="not_known_yet"):
        msgspec.convert(least | {"not_known_yet": 1}, kind)


@pytest.mark.parametrize("name", ["", "a" * 65, "a\n", "\na", "\x1b[2J", "a\x9b", "a\0"])
def test_names_cannot_move_the_cursor_or_fill_the_screen(name):
    with pytest.raises(msgspec.ValidationError, match=r"\$\.name"):
        msgspec.convert({"name": name}, KeyRequest)


def test_no_reply_but_that_of_the_creation_has_a_key():
    assert "key" not in KeyInfo.__struct_fields__


@pytest.mark.parametrize("route", KeyRoute)
def test_every_route_is_under_the_version(route):
    assert route.startswith("/v0/")
