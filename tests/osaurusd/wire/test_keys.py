"""API key types survive a round trip. Requests are strict, and names are safe to print."""

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
def test_a_value_survives_a_round_trip(value):
    assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


@pytest.mark.parametrize("reply", REPLIES)
def test_replies_may_have_unknown_fields(reply):
    newer = msgspec.to_builtins(reply) | {"added_later": 1}
    assert msgspec.convert(newer, type(reply)) == reply


@pytest.mark.parametrize(("kind", "fields"), [(KeyRequest, {}), (RevokeRequest, {"id": "a"})])
def test_requests_may_not_have_unknown_fields(kind, fields):
    with pytest.raises(msgspec.ValidationError, match="added_later"):
        msgspec.convert(fields | {"added_later": 1}, kind)


@pytest.mark.parametrize("name", ["", "a" * 65, "a\n", "\na", "\x1b[2J", "a\x9b", "a\0"])
def test_names_are_short_and_have_no_control_characters(name):
    with pytest.raises(msgspec.ValidationError, match=r"\$\.name"):
        msgspec.convert({"name": name}, KeyRequest)


def test_only_a_new_key_contains_its_secret():
    assert "key" not in KeyInfo.__struct_fields__


@pytest.mark.parametrize("route", KeyRoute)
def test_every_route_has_the_version_prefix(route):
    assert route.startswith("/v0/")
