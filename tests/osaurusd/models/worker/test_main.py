import signal

import pytest

from osaurusd.rpc import messages

from . import process

ENDLESS = 1 << 36


@pytest.fixture
def endless(tmp_path):
    """A model folder with so much nothing in it that to hash it takes minutes."""
    folder = tmp_path / "endless"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.truncate(ENDLESS)
    return folder


async def test_it_ends_when_the_daemon_does(endless):
    async with process.running("verify", "--snapshot", endless) as (child, reader, writer):
        assert await reader.read() == messages.Hashing(file="model.safetensors", done=0, total=ENDLESS)
        writer.close()

        assert await child.wait() == 1


async def test_an_interrupt_from_the_terminal_is_the_daemons_business(endless):
    async with process.running("verify", "--snapshot", endless) as (child, reader, _):
        before = await reader.read()
        child.send_signal(signal.SIGINT)
        later = [await reader.read() for _ in range(3)]

        assert before.done < later[0].done < later[1].done < later[2].done
        assert child.returncode is None


async def test_a_daemon_that_hangs_up_on_success_does_not_make_it_a_failure(cache):
    async with process.running("verify", "--snapshot", cache.snapshot) as (child, reader, writer):
        while not isinstance(await reader.read(), messages.Hashed):
            pass
        writer.close()

        assert await child.wait() == 0
