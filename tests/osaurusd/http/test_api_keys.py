"""API keys are stored as digests, compared in constant time, and rejected immediately when revoked."""

import hashlib
import json
import re
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from osaurusd.errors import InternalError, NotFound
from osaurusd.http.api_keys import ApiKeys
from osaurusd.wire.keys import KeyInfo

HOUR = 3600


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / "keys.json"


class Clock:
    now = 100 * HOUR + 5.5

    def __call__(self):
        return self.now


def fail(*_):
    raise OSError(28, "No space left on device")


def test_key_is_accepted_from_creation_on_and_after_restarts(file):
    keys = ApiKeys(file)
    key = keys.create("laptop")

    assert re.fullmatch(r"sk-osaurus-[A-Za-z0-9]{43}", key.key)
    assert key.id == keys.find(key.key) == ApiKeys(file).find(key.key)
    assert [key.id] == [info.id for info in ApiKeys(file).infos()]
    assert key.key != keys.create().key


def test_file_contains_digests_and_is_private(file):
    key = ApiKeys(file).create("laptop")
    (stored,) = json.loads(file.read_text())["keys"]

    assert hashlib.sha256(key.key.encode()).hexdigest() == stored["sha256"]
    assert key.key not in file.read_text()
    assert key.key.removeprefix("sk-osaurus-") not in file.read_text()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    assert 0o700 == stat.S_IMODE(file.parent.stat().st_mode)


def test_other_text_is_not_accepted(file):
    keys = ApiKeys(file)
    assert keys.find("") is None
    key = keys.create()
    for wrong in ("", key.key[:-1], key.key + "x", key.key.lower(), key.id, hashlib.sha256(b"").hexdigest()):
        assert keys.find(wrong) is None


def test_every_digest_is_compared_in_constant_time(file, monkeypatch):
    keys = ApiKeys(file)
    created = [keys.create() for _ in range(3)]
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(b) or a == b)

    assert created[0].id == keys.find(created[0].key)
    assert keys.find("sk-osaurus-wrong") is None
    assert 6 == len(compared)


def test_revoked_key_is_rejected_immediately_and_after_restarts(file):
    keys = ApiKeys(file)
    first, second = keys.create(), keys.create("b")
    revoked = keys.revoke(first.id)

    assert KeyInfo(id=first.id, name=None, created=first.created) == revoked
    assert (None, second.id) == (keys.find(first.key), keys.find(second.key))
    assert (None, second.id) == (ApiKeys(file).find(first.key), ApiKeys(file).find(second.key))
    with pytest.raises(NotFound, match=first.id):
        keys.revoke(first.id)


def test_keys_can_be_created_and_revoked_concurrently(file):
    keys = ApiKeys(file)
    old = [keys.create().id for _ in range(4)]
    with ThreadPoolExecutor(8) as executor:
        created = [executor.submit(keys.create) for _ in range(12)]
        revoked = [executor.submit(keys.revoke, key_id) for key_id in old]
    expected = {future.result().id for future in created}

    assert set(old) == {future.result().id for future in revoked}
    assert expected == {info.id for info in keys.infos()} == {info.id for info in ApiKeys(file).infos()}


def test_key_that_cannot_be_saved_is_not_accepted(file, monkeypatch):
    keys = ApiKeys(file)
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InternalError, match="cannot create a key"):
        keys.create()
    assert [] == keys.infos()


def test_key_is_revoked_even_if_that_cannot_be_saved(file, monkeypatch):
    keys = ApiKeys(file)
    key = keys.create()
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InternalError, match="until the daemon restarts"):
        keys.revoke(key.id)
    assert keys.find(key.key) is None


def test_last_use_is_recorded_by_the_hour(file):
    clock = Clock()
    keys = ApiKeys(file, clock)
    key = keys.create()
    assert [None] == [info.last_used for info in keys.infos()]

    assert [True, False] == [keys.record_use(key.id), keys.record_use(key.id)]
    assert [100 * HOUR] == [info.last_used for info in keys.infos()]
    assert [None] == [info.last_used for info in ApiKeys(file).infos()]
    keys.save()
    reopened = ApiKeys(file, clock)
    assert [100 * HOUR] == [info.last_used for info in reopened.infos()]
    assert not reopened.record_use(key.id)
    clock.now += HOUR
    assert reopened.record_use(key.id)


def test_saving_last_use_does_not_restore_a_revoked_key(file):
    keys = ApiKeys(file)
    key = keys.create()
    keys.record_use(key.id)
    keys.revoke(key.id)
    keys.record_use(key.id)
    keys.save()
    assert [] == ApiKeys(file).infos()


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
def test_damaged_file_is_moved_aside_and_no_key_is_accepted(file, content):
    file.parent.mkdir()
    file.write_bytes(content)
    keys = ApiKeys(file)

    assert 0 == len(keys)
    assert "moved to keys.damaged.json" in keys.fault
    assert content == file.with_name("keys.damaged.json").read_bytes()
