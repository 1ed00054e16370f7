"""What the journal says after a crash is what was received, and never more."""

import json
import os

import pytest

from osaurusd.downloads.worker import partial as module
from osaurusd.downloads.worker.partial import Partial

ETAG = "e" * 64
PART = 4 * 1024 * 1024
SIZE = 3 * PART - 5


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", PART)


@pytest.fixture
def crashed(tmp_path):
    """A file of which 2.5 MiB of the first part and all of the last had come when its process was killed."""
    partial = Partial(tmp_path, ETAG, SIZE)
    partial.expect("v1")
    for piece in [bytes(512 * 1024)] * 5:
        partial.write(partial.parts[0], piece)
    partial.write(partial.parts[2], b"x" * partial.parts[2].left)
    os.close(partial._fd)
    os.close(partial._journal)
    return tmp_path


def received(folder):
    partial = Partial(folder, ETAG, SIZE)
    partial.close()
    return [part.done for part in partial.parts]


def test_a_new_file_has_nothing_in_parts_that_cover_it(tmp_path):
    partial = Partial(tmp_path, ETAG, SIZE)
    partial.close()

    assert [(0, PART), (PART, 2 * PART), (2 * PART, SIZE)] == [(part.begin, part.end) for part in partial.parts]
    assert 0 == partial.received


def test_a_killed_process_loses_less_than_a_mebibyte_of_a_part(crashed):
    assert [2 * 1024 * 1024, 0, PART - 5] == received(crashed)
    # And once more, from the journal that was written anew.
    assert [2 * 1024 * 1024, 0, PART - 5] == received(crashed)


def test_what_is_closed_loses_nothing(tmp_path):
    partial = Partial(tmp_path, ETAG, SIZE)
    partial.write(partial.parts[1], b"abc")
    partial.close()

    assert [0, 3, 0] == received(tmp_path)
    assert b"abc" == (tmp_path / f"{ETAG}.part").read_bytes()[PART:]


def test_after_a_reboot_only_what_was_synced_counts(tmp_path, monkeypatch):
    partial = Partial(tmp_path, ETAG, SIZE)
    partial.write(partial.parts[0], bytes(100))
    partial.sync()
    partial.write(partial.parts[0], bytes(PART - 100))
    partial.close()
    assert [PART, 0, 0] == received(tmp_path)

    monkeypatch.setattr(module, "boot", lambda: "another")
    assert [100, 0, 0] == received(tmp_path)


def test_a_system_that_does_not_tell_its_boots_apart_counts_as_rebooted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "boot", lambda: None)
    partial = Partial(tmp_path, ETAG, SIZE)
    partial.write(partial.parts[0], bytes(100))
    partial.close()

    assert [0, 0, 0] == received(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-7],
        lambda text: text + '{"part": 1, "do',
    ],
    ids=["cut", "torn"],
)
def test_a_torn_last_line_is_passed_over(crashed, damage):
    journal = crashed / f"{ETAG}.journal"
    journal.write_text(damage(journal.read_text()))

    assert 2 * 1024 * 1024 == received(crashed)[0]


@pytest.mark.parametrize(
    "line",
    ["garbage", {"part": 9, "done": 1}, {"part": 0, "done": PART + 1}, {"part": 0, "done": -1}, {"safe": [1]}, 1],
    ids=str,
)
def test_a_journal_that_makes_no_sense_counts_as_none(crashed, line):
    journal = crashed / f"{ETAG}.journal"
    journal.write_text(journal.read_text() + (line if line == "garbage" else json.dumps(line)) + "\n")

    assert [0, 0, 0] == received(crashed)


@pytest.mark.parametrize("gone", ["part", "journal"])
def test_data_and_journal_are_nothing_without_each_other(crashed, gone):
    (crashed / f"{ETAG}.{gone}").unlink()

    assert [0, 0, 0] == received(crashed)


def test_what_the_server_calls_the_file_is_remembered_until_it_is_begun_again(crashed):
    partial = Partial(crashed, ETAG, SIZE)
    assert "v1" == partial.validator
    partial.restart(whole=True)
    partial.close()

    again = Partial(crashed, ETAG, SIZE)
    again.close()
    assert (None, [(0, SIZE, 0)]) == (again.validator, [(part.begin, part.end, part.done) for part in again.parts])


def test_a_finished_file_leaves_nothing_but_itself(tmp_path):
    partial = Partial(tmp_path, ETAG, 3)
    partial.write(partial.parts[0], b"abc")
    partial.finish(tmp_path / "done")

    assert ["done"] == [path.name for path in tmp_path.iterdir()]
    assert b"abc" == (tmp_path / "done").read_bytes()


def test_an_empty_file_is_complete_at_once(tmp_path):
    partial = Partial(tmp_path, ETAG, 0)
    partial.finish(tmp_path / "done")

    assert b"" == (tmp_path / "done").read_bytes()
