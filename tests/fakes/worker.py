"""A worker without a model: speaks frames over `--fd N` like the real one, and misbehaves on request.

How it loads is chosen by the name of the folder that it is told to load:

    slow_ready      connects to 127.0.0.1 on the port that the file `gate` in the folder names, and is loaded once
                    the other side has written something
    crash_on_load   prints its last words and ends with exit code 3
    refuse_load     answers LoadFailed
    garbage_on_load answers with bytes that are no frame
    close_on_load   closes its end instead of answering, makes the file `closed` in the folder, and lives on
    deaf_on_stop    is loaded, but ignores Shutdown and the end of file, and ends only on SIGTERM
    hang_on_stop    is loaded, but ignores Shutdown, the end of file and SIGTERM too
    plod_on_load    is loaded after several times what the test calls a hang, and tells of progress meanwhile
    have_child      is loaded, and leaves a process behind that holds standard error open; `child` is its pid
    anything else   is loaded at once

How it answers is chosen by the last message, or the text or the token ids that are to be continued:

    crash           one word, then last words on standard error and exit code 7
    fail            one word, then Failed
    garbage         one word, then bytes that are no frame
    flood           four times what the daemon buffers for a client, at once, then Done
    stall           one word, and nothing more until it is cancelled
    plod            one word, then nothing but pulses for about a second, then Done
    think           a thought, then one word
    call            a call of the first tool, in pieces
    anything else   itself, word by word, in turn with what other requests get, as often as it was asked for; up to
                    `max_tokens` words, each one told with its likelihood if that was asked for, and after the prompt
                    if that is to be echoed

Each prompt has one token, each word is one, and a thought is two.

The environment variable PYTHON_FAKE_WORKER, whose name is passed on to workers, chooses what comes before any order:

    wrong_version   a Hello of another version
    garbage         bytes that are no frame instead of Hello
    silent          no Hello
    die_at_once     last words and exit code 3 instead of Hello
    brief           Hello and Loaded without being asked, then exit code 5

If the folder has a file `least`, that is what the model needs at the least, in bytes.

In the folder it leaves `received`, the tags of the frames it got, one a line; `load.json`, the order to load; and
`loaded` once it has said that it is; and `limits.jsonl`, the limits that came later, a line each.
"""

import argparse
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec

from osaurusd import __version__
from osaurusd.inference.events import (
    Completed,
    Delta,
    Finished,
    FinishReason,
    Logprob,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from osaurusd.inference.request import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from osaurusd.rpc import framing, messages
from osaurusd.wire.errors import ErrorCode

GARBAGE = b"\xff" * 64
PLODDING_STEPS = 12
PLODDING_SECONDS = 0.1
FLOOD_BYTES = 4 * 1024 * 1024
FLOOD_DELTA = "x" * 64 * 1024
LOADED = messages.Loaded(device="fake", dtype="none", memory_bytes=1234, batched=True)
STATS = messages.Stats(active_bytes=1000, cache_bytes=234)


class Worker:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb", buffering=0)
        self._running: dict[int, Iterator[list[messages.Frame]]] = {}
        self._folder: Path | None = None
        self._stubborn = False

    def run(self) -> None:
        """Answer until the daemon closes its end or says goodbye."""
        _misbehave_early(self._connection)
        self.send(messages.Hello(version=__version__))
        while True:
            while self._readable(wait=not self._running):
                if not self._obey(self._receive()):
                    return
            self._step()

    def send(self, *frames: messages.Frame) -> None:
        self._connection.sendall(framing.encode(frames))

    def _readable(self, *, wait: bool) -> bool:
        ready, _, _ = select.select([self._connection], [], [], None if wait else 0)
        return bool(ready)

    def _receive(self) -> messages.ToWorker | None:
        head = self._read(4)
        return messages.TO_WORKER.decode(self._read(int.from_bytes(head, "big"))) if head else None

    def _read(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count and (part := self._stream.read(count - len(parts))):
            parts += part
        return parts

    def _obey(self, frame: messages.ToWorker | None) -> bool:
        """Whether to go on."""
        if frame is None or isinstance(frame, messages.Shutdown):
            self._note(frame)
            if self._stubborn:
                _hang()
            return False
        match frame:
            case messages.Load():
                self._folder = Path(frame.path)
                self._note(frame)
                (self._folder / "load.json").write_bytes(msgspec.json.encode(frame))
                self._load(self._folder)
            case messages.Limits():
                with (self._folder / "limits.jsonl").open("ab") as file:
                    file.write(msgspec.json.encode(frame) + b"\n")
            case messages.Generate():
                self._note(frame)
                self._begin(frame)
            case messages.Cancel():
                self._note(frame)
                self._running.pop(frame.id, None)
        return True

    def _note(self, frame: messages.ToWorker | None) -> None:
        if frame is not None and self._folder is not None:
            with (self._folder / "received").open("a") as file:
                file.write(f"{msgspec.to_builtins(frame)['type']}\n")

    def _load(self, folder: Path) -> None:
        match folder.name:
            case "slow_ready":
                with socket.create_connection(("127.0.0.1", int((folder / "gate").read_text()))) as gate:
                    gate.recv(1)
            case "crash_on_load":
                _die("no room for the weights", 3)
            case "refuse_load":
                self.send(messages.LoadFailed(message="the weights are not there"))
                return
            case "garbage_on_load":
                self._connection.sendall(GARBAGE)
                return
            case "close_on_load":
                self._stream.close()
                self._connection.close()
                (folder / "closed").touch()
                _hang()
            case "deaf_on_stop":
                self._stubborn = True
            case "hang_on_stop":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                self._stubborn = True
            case "have_child":
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
                (folder / "child").write_text(str(child.pid))
            case "plod_on_load":
                self._plod()
        least = folder / "least"
        self.send(msgspec.structs.replace(LOADED, least_bytes=int(least.read_text()) if least.exists() else 0), STATS)
        (folder / "loaded").touch()

    def _plod(self) -> None:
        for step in range(PLODDING_STEPS):
            self.send(messages.Pulse(progress=step + 1))
            time.sleep(PLODDING_SECONDS)

    def _begin(self, order: messages.Generate) -> None:
        text = _text(order.request.prompt)
        match text:
            case "crash" | "fail" | "garbage" | "stall":
                self.send(_delta(order.id, text=f"{text} "))
                self._misbehave(text, order.id)
            case "flood":
                deltas = [_delta(order.id, text=FLOOD_DELTA)] * (FLOOD_BYTES // len(FLOOD_DELTA))
                self.send(*deltas, _finished(order.id, reason="stop"), _done(order.id, 0))
            case "plod":
                self.send(_delta(order.id, text="plod "))
                self._running[order.id] = _plodding(order)
            case "think" | "call":
                self._running[order.id] = _scripted(order, text)
            case _:
                self._running[order.id] = _echoed(order, text)

    def _misbehave(self, how: str, id_: int) -> None:
        match how:
            case "crash":
                _die("the GPU caught fire", 7)
            case "fail":
                code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
                self.send(messages.Failed(id=id_, code=code, message="too long", location=("prompt",)))
            case "garbage":
                self._connection.sendall(GARBAGE)

    def _step(self) -> None:
        """One word for every answer that still has some, in one write."""
        frames: list[messages.Frame] = []
        for id_, steps in list(self._running.items()):
            step = next(steps, None)
            if step is None:
                del self._running[id_]
            else:
                frames += step
        self.send(*frames)


def _misbehave_early(connection: socket.socket) -> None:
    match os.environ.get("PYTHON_FAKE_WORKER"):
        case "wrong_version":
            connection.sendall(framing.encode([messages.Hello(version="0.0.0")]))
            _hang()
        case "garbage":
            connection.sendall(GARBAGE)
            _hang()
        case "silent":
            _hang()
        case "die_at_once":
            _die("no such library", 3)
        case "brief":
            connection.sendall(framing.encode([messages.Hello(version=__version__), LOADED]))
            sys.exit(5)


def _text(prompt: Prompt) -> str:
    match prompt:
        case ChatPrompt():
            return prompt.messages[-1].text
        case TextPrompt():
            return prompt.text
        case TokenPrompt():
            return " ".join(map(str, prompt.tokens))


def _echoed(order: messages.Generate, text: str) -> Iterator[list[messages.Frame]]:
    words = [f"{word} " for word in text.split()]
    reason: FinishReason = "stop"
    if order.request.max_tokens is not None and order.request.max_tokens < len(words):
        words, reason = words[: order.request.max_tokens], "length"
    answers = range(order.request.n)
    if order.request.echo:
        likelihoods = [_likelihood(text, None, order.request.logprobs)] if order.request.logprobs is not None else []
        yield [_delta(order.id, index=index, text=text, logprobs=likelihoods) for index in answers]
    for word in words:
        likelihoods = [_likelihood(word, -0.5, order.request.logprobs)] if order.request.logprobs is not None else []
        yield [_delta(order.id, index=index, text=word, logprobs=likelihoods) for index in answers]
    finished = [_finished(order.id, index=index, reason=reason) for index in answers]
    yield [*finished, _done(order.id, order.request.n * len(words))]


def _likelihood(text: str, logprob: float | None, others: int) -> TokenLogprob:
    found = [Logprob(text=f"{at}", bytes=[*b"%d" % at], logprob=-1.0 - at) for at in range(others)]
    top = [] if logprob is None else found
    return TokenLogprob(text=text, bytes=[*text.encode()], logprob=logprob, top=top)


def _plodding(order: messages.Generate) -> Iterator[list[messages.Frame]]:
    for step in range(PLODDING_STEPS):
        time.sleep(PLODDING_SECONDS)
        yield [messages.Pulse(progress=step + 1)]
    yield [_finished(order.id, reason="stop"), _done(order.id, 1)]


def _scripted(order: messages.Generate, how: str) -> Iterator[list[messages.Frame]]:
    if how == "think":
        yield [_delta(order.id, reasoning="Hm. ")]
        yield [_delta(order.id, reasoning="Yes.")]
        yield [_delta(order.id, text="thought")]
        yield [_finished(order.id, reason="stop"), _done(order.id, 3, reasoning_tokens=2)]
    else:
        assert isinstance(order.request.prompt, ChatPrompt)
        name = order.request.prompt.tools[0].name
        yield [_delta(order.id, tool_calls=[ToolCallDelta(index=0, id="call_1", name=name)])]
        yield [_delta(order.id, tool_calls=[ToolCallDelta(index=0, arguments='{"a":')])]
        yield [_delta(order.id, tool_calls=[ToolCallDelta(index=0, arguments=" 1}")])]
        yield [_finished(order.id, reason="tool_calls"), _done(order.id, 3)]


def _delta(id_: int, **fields) -> messages.Output:
    return messages.Output(id=id_, event=Delta(**fields))


def _finished(id_: int, **fields) -> messages.Output:
    return messages.Output(id=id_, event=Finished(**fields))


def _done(id_: int, tokens: int, reasoning_tokens: int = 0) -> messages.Output:
    usage = Usage(prompt_tokens=1, completion_tokens=tokens, reasoning_tokens=reasoning_tokens)
    return messages.Output(id=id_, event=Completed(usage=usage))


def _die(words: str, code: int) -> NoReturn:
    print("this is not the last line", file=sys.stderr)
    print(words, file=sys.stderr, flush=True)
    os._exit(code)


def _hang() -> NoReturn:
    while True:
        time.sleep(60)


def main() -> None:
    """Serve on the inherited socket."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    with socket.socket(fileno=parser.parse_args().fd) as connection:
        Worker(connection).run()


if __name__ == "__main__":
    main()
