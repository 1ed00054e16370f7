"""Who reads slowly is let be, and who does not read is dropped."""

import pytest

from osaurusd.http.reader_clock import ReaderClock


class Pipe:
    """A transport of which only what is unsent matters."""

    def __init__(self):
        self.unsent = 100
        self.aborted = False

    def get_write_buffer_size(self):
        return self.unsent

    def abort(self):
        self.aborted = True


@pytest.fixture
def pipe():
    return Pipe()


async def test_a_slow_reader_is_let_be_as_long_as_it_reads(pipe):
    clock = ReaderClock(1e-9)
    clock.start(pipe)
    for pipe.unsent in (99, 50, 1):
        clock.look(pipe)
        assert not pipe.aborted
    clock.look(pipe)
    assert pipe.aborted


async def test_more_to_read_is_not_taken_for_reading(pipe):
    clock = ReaderClock(1e-9)
    clock.start(pipe)
    pipe.unsent = 101
    clock.look(pipe)
    assert pipe.aborted


async def test_there_is_time_to_read(pipe):
    clock = ReaderClock(600)
    clock.start(pipe)
    clock.look(pipe)
    clock.stop()
    assert not pipe.aborted
