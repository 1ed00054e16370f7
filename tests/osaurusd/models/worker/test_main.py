"""The life cycle of the maintenance process."""

import signal

import pytest

from osaurusd.models import messages

from . import process

HUGE_BYTES = 1 << 36


@pytest.fixture
def huge_model(tmp_path):
    """A model folder with a sparse file that takes minutes to hash."""
    folder = tmp_path / "huge"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.truncate(HUGE_BYTES)
    return folder


async def test_process_exits_with_the_daemon(huge_model):
    async with process.running("verify", "--snapshot", huge_model) as (child, reader, writer):
        assert await reader.read() == messages.Hashing(file="model.safetensors", done=0, total=HUGE_BYTES)
        writer.close()

        assert await child.wait() == 1


async def test_interrupt_from_the_terminal_is_ignored(huge_model):
    async with process.running("verify", "--snapshot", huge_model) as (child, reader, _):
        before = await reader.read()
        child.send_signal(signal.SIGINT)
        later = [await reader.read() for _ in range(3)]

        assert before.done < later[0].done < later[1].done < later[2].done
        assert child.returncode is None


async def test_exit_code_is_0_if_the_daemon_disconnects_after_the_result(cache):
    async with process.running("verify", "--snapshot", cache.snapshot) as (child, reader, writer):
        while not isinstance(await reader.read(), messages.Verification):
            pass
        writer.close()

        assert await child.wait() == 0
