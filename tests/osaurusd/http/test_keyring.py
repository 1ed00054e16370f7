"""API keys are kept as digests, looked up without telling anything, and gone at once when revoked."""

import hashlib
import json
import re
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from osaurusd.errors import InternalError, NotFound
from osaurusd.http.keyring import Keyring
from osaurusd.wire.keys import KeyInfo

HOUR = 3600


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / "keys.json"


class Clock:
    now = 100 * HOUR + 5.5

    def __call__(self):
        return self.now


def test_a_key_is_known_from_its_creation_on_and_over_restarts(file):
    keyring = Keyring(file)
    made = keyring.create("laptop")

    assert re.fullmatch(r"sk-osaurus-[A-Za-z0-9]{43}", made.key)
    assert made.id == keyring.find(made.key) == Keyring(file).find(made.key)
    assert [made.id] == [key.id for key in Keyring(file).all]
    assert made.key != keyring.create().key


def test_only_digests_are_kept_and_only_for_the_owner(file):
    made = Keyring(file).create("laptop")
    (kept,) = json.loads(file.read_text())["keys"]

    assert hashlib.sha256(made.key.encode()).hexdigest() == kept["sha256"]
    assert made.key not in file.read_text()
    assert made.key.removeprefix("sk-osaurus-") not in file.read_text()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert 0o700 == stat.S_IMODE(file.parent.stat().st_mode)


def test_what_is_no_key_is_not_found(file):
    keyring = Keyring(file)
    assert keyring.find("") is None
    made = keyring.create()
    for wrong in ("", made.key[:-1], made.key + "x", made.key.lower(), made.id, hashlib.sha256(b"").hexdigest()):
        assert keyring.find(wrong) is None


def test_every_key_is_compared_whichever_it_is(file, monkeypatch):
    keyring = Keyring(file)
    made = [keyring.create() for _ in range(3)]
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(b) or a == b)

    assert made[0].id == keyring.find(made[0].key)
    assert keyring.find("sk-osaurus-wrong") is None
    assert 6 == len(compared)


def test_a_revoked_key_is_gone_at_once_and_for_good(file):
    keyring = Keyring(file)
    first, second = keyring.create(), keyring.create("b")
    gone = keyring.revoke(first.id)

    assert KeyInfo(id=first.id, name=None, created=first.created) == gone
    assert (None, second.id) == (keyring.find(first.key), keyring.find(second.key))
    assert (None, second.id) == (Keyring(file).find(first.key), Keyring(file).find(second.key))
    with pytest.raises(NotFound, match=first.id):
        keyring.revoke(first.id)


def test_keys_that_are_made_and_revoked_at_once_are_all_kept_right(file):
    keyring = Keyring(file)
    old = [keyring.create().id for _ in range(4)]
    with ThreadPoolExecutor(8) as executor:
        made = [executor.submit(keyring.create) for _ in range(12)]
        gone = [executor.submit(keyring.revoke, key_id) for key_id in old]
    expected = {each.result().id for each in made}

    assert set(old) == {each.result().id for each in gone}
    assert expected == {key.id for key in keyring.all} == {key.id for key in Keyring(file).all}


def test_a_key_that_cannot_be_kept_does_not_exist(file, monkeypatch):
    keyring = Keyring(file)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(InternalError, match="no key was made"):
        keyring.create()
    assert [] == keyring.all


def test_a_key_whose_end_cannot_be_kept_is_refused_all_the_same(file, monkeypatch):
    keyring = Keyring(file)
    made = keyring.create()
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(InternalError, match="after a restart it would be accepted again"):
        keyring.revoke(made.id)
    assert keyring.find(made.key) is None


def refuse(*_):
    raise OSError(28, "No space left on device")


def test_use_is_worth_saving_once_an_hour(file):
    clock = Clock()
    keyring = Keyring(file, clock)
    made = keyring.create()
    assert [None] == [key.last_used for key in keyring.all]

    assert [True, False] == [keyring.note_use(made.id), keyring.note_use(made.id)]
    assert [100 * HOUR] == [key.last_used for key in keyring.all]
    assert [None] == [key.last_used for key in Keyring(file).all]
    keyring.save()
    again = Keyring(file, clock)
    assert [100 * HOUR] == [key.last_used for key in again.all]
    assert not again.note_use(made.id)
    clock.now += HOUR
    assert again.note_use(made.id)


def test_what_is_saved_late_brings_no_revoked_key_back(file):
    keyring = Keyring(file)
    made = keyring.create()
    keyring.note_use(made.id)
    keyring.revoke(made.id)
    keyring.note_use(made.id)
    keyring.save()
    assert [] == Keyring(file).all


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "keys": []}',
        b'{"version": 1, "keys": [{"id": "a", "created": 1, "sha256": ""}]}',
        b'{"version": 1, "keys": [{"id": "a", "created": 1, "sha256": "' + b"A" * 64 + b'"}]}',
        b'{"version": 1, "keys": [{"id": "a", "created": 1, "sha256": "' + b"a" * 64 + b'\\n"}]}',
    ],
)
def test_of_a_damaged_file_no_key_is_accepted(file, content):
    file.parent.mkdir()
    file.write_bytes(content)
    keyring = Keyring(file)

    assert 0 == len(keyring)
    assert "was moved aside to keys.damaged.json" in keyring.fault
    assert content == file.with_name("keys.damaged.json").read_bytes()
