import asyncio
import contextlib
import json
import signal
import socket
import sys
from pathlib import Path

import pytest

import osaurusd
from osaurusd.imports import messages
from osaurusd.rpc import framing

ROOT = Path(osaurusd.__file__).parents[1]


@contextlib.asynccontextmanager
async def start_importer(source, dest):
    """Start the importer like the daemon; yield the process, a frame reader and the writer that closes the socket."""
    daemon_socket, importer_socket = socket.socketpair()
    with importer_socket:
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "osaurusd.imports.worker",
                "--fd",
                str(importer_socket.fileno()),
                str(source),
                str(dest),
            ),
            pass_fds=(importer_socket.fileno(),),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
        )
    stream, writer = await framing.connect(daemon_socket.detach())
    try:
        yield process, framing.FrameReader(stream, messages.FROM_IMPORTER), writer
    finally:
        writer.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def read_frames(reader):
    frames = []
    while (frame := await reader.read()) is not None:
        frames.append(frame)
    return frames


@pytest.fixture
def huge(tmp_path, tiny):
    """A valid file, sparse and so large that hashing it takes minutes."""
    path = tiny.write(tmp_path / "huge.gguf")
    with path.open("r+b") as stream:
        stream.truncate(1 << 36)
    return path


async def test_import_reports_progress_and_success(tmp_path, dest, tiny):
    source = tiny.write(tmp_path / "x.gguf", "Q4_1")

    async with start_importer(source, dest) as (process, reader, _):
        frames = await read_frames(reader)
        code = await process.wait()

    assert code == 0
    assert isinstance(frames[-1], messages.Imported)
    assert frames[-1].quantization.converted == 0
    size = source.stat().st_size
    assert frames[0].stage == "convert"
    assert messages.Progress(stage="hash", done=size, total=size) in frames
    assert frames[-2].stage == "record"
    assert frames[-2].done == frames[-2].total
    assert json.loads((dest / "osaurus.json").read_text())["source"] == "x.gguf"


async def test_connection_closed_after_success_is_not_a_failure(tmp_path, dest, tiny):
    async with start_importer(tiny.write(tmp_path / "x.gguf"), dest) as (process, reader, writer):
        while not isinstance(await reader.read(), messages.Imported):
            pass
        writer.close()

        assert await process.wait() == 0


async def test_failure_is_reported_with_its_reason(tmp_path, dest):
    (tmp_path / "x.gguf").write_text("not a model")

    async with start_importer(tmp_path / "x.gguf", dest) as (process, reader, _):
        frames = await read_frames(reader)
        code = await process.wait()

    reason = "x.gguf: not a GGUF file: it does not start with GGUF"
    assert frames == [messages.ImportFailure(message=reason)]
    assert code == 1


async def test_importer_exits_when_the_connection_closes(huge, dest):
    async with start_importer(huge, dest) as (process, reader, writer):
        while await reader.read() != messages.Progress(stage="hash", done=0, total=1 << 36):
            pass
        writer.close()

        assert await process.wait() == 1
    assert not (dest / "osaurus.json").exists()


async def test_keyboard_interrupt_is_ignored(huge, dest):
    async with start_importer(huge, dest) as (process, reader, _):
        while (first := await reader.read()).stage != "hash":
            pass
        process.send_signal(signal.SIGINT)
        later = [await reader.read() for _ in range(3)]

        assert first.done < later[0].done < later[1].done < later[2].done
        assert process.returncode is None
