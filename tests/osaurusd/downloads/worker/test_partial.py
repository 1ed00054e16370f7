"""Resuming from the journal: after a crash it never claims more than was received."""

import json
import subprocess
import sys

import pytest

from osaurusd.downloads.worker import partial as partial_module
from osaurusd.downloads.worker.partial import Partial

ETAG = "e" * 64
MIB = 1024 * 1024
PART = 4 * MIB
SIZE = 3 * PART - 5


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(partial_module, "PART_BYTES", PART)


CRASH = """
import os, signal, sys
from pathlib import Path
from osaurusd.downloads.worker import partial
partial.PART_BYTES = int(sys.argv[4])
file = partial.Partial(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
file.set_validator("v1")
for _ in range(5):
    file.write(file.parts[0], bytes(512 * 1024))
file.write(file.parts[2], b"x" * file.parts[2].missing)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def crashed(tmp_path):
    """The folder of a process that was killed after it had received 2.5 MiB of the first part and all of the last."""
    command = [sys.executable, "-c", CRASH, str(tmp_path), ETAG, str(SIZE), str(PART)]
    assert -9 == subprocess.run(command).returncode
    return tmp_path


def received(folder):
    """Return the received bytes of each part."""
    partial = Partial(folder, ETAG, SIZE)
    partial.close()
    return [part.done for part in partial.parts]


def test_new_file_is_split_into_empty_parts(tmp_path):
    partial = Partial(tmp_path, ETAG, SIZE)
    partial.close()

    assert [(0, PART), (PART, 2 * PART), (2 * PART, SIZE)] == [(part.begin, part.end) for part in partial.parts]
    assert 0 == partial.received


def test_killed_process_loses_less_than_a_mebibyte_per_part(crashed):
    assert [2 * MIB, 0, PART - 5] == received(crashed)
    # Again, from the journal that the previous call has compacted.
    assert [2 * MIB, 0, PART - 5] == received(crashed)


def test_closed_file_loses_nothing(tmp_path):
    partial = Partial(tmp_path, ETAG, SIZE)
    partial.write(partial.parts[1], b"abc")
    partial.close()

    assert [0, 3, 0] == received(tmp_path)
    assert b"abc" == (tmp_path / f"{ETAG}.part").read_bytes()[PART:]


def test_only_synced_data_counts_after_a_reboot(tmp_path, monkeypatch):
    partial = Partial(tmp_path, ETAG, SIZE)
    partial.write(partial.parts[0], bytes(100))
    partial.sync()
    partial.write(partial.parts[0], bytes(PART - 100))
    partial.close()
    assert [PART, 0, 0] == received(tmp_path)

    monkeypatch.setattr(partial_module, "boot_id", lambda: "another")
    assert [100, 0, 0] == received(tmp_path)


def test_only_synced_data_counts_if_the_system_has_no_boot_id(tmp_path, monkeypatch):
    monkeypatch.setattr(partial_module, "boot_id", lambda: None)
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
    ids=["truncated", "incomplete"],
)
def test_incomplete_last_line_is_ignored(crashed, damage):
    journal = crashed / f"{ETAG}.journal"
    journal.write_text(damage(journal.read_text()))

    assert 2 * MIB == received(crashed)[0]


@pytest.mark.parametrize(
    "line",
    ["garbage", {"part": 9, "done": 1}, {"part": 0, "done": PART + 1}, {"part": 0, "done": -1}, {"synced": [1]}, 1],
    ids=str,
)
def test_invalid_journal_is_ignored(crashed, line):
    journal = crashed / f"{ETAG}.journal"
    journal.write_text(journal.read_text() + (line if line == "garbage" else json.dumps(line)) + "\n")

    assert [0, 0, 0] == received(crashed)


@pytest.mark.parametrize("missing", ["part", "journal"])
def test_data_and_journal_are_only_used_together(crashed, missing):
    (crashed / f"{ETAG}.{missing}").unlink()

    assert [0, 0, 0] == received(crashed)


def test_validator_is_restored_until_the_file_is_restarted(crashed):
    partial = Partial(crashed, ETAG, SIZE)
    assert "v1" == partial.validator
    partial.restart(whole=True)
    partial.close()

    restarted = Partial(crashed, ETAG, SIZE)
    restarted.close()
    parts = [(part.begin, part.end, part.done) for part in restarted.parts]
    assert (None, [(0, SIZE, 0)]) == (restarted.validator, parts)


def test_finished_file_leaves_no_other_files(tmp_path):
    partial = Partial(tmp_path, ETAG, 3)
    partial.write(partial.parts[0], b"abc")
    partial.finish(tmp_path / "done")

    assert ["done"] == [path.name for path in tmp_path.iterdir()]
    assert b"abc" == (tmp_path / "done").read_bytes()


def test_empty_file_is_complete(tmp_path):
    partial = Partial(tmp_path, ETAG, 0)
    partial.finish(tmp_path / "done")

    assert b"" == (tmp_path / "done").read_bytes()
