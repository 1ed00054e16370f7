"""A worker without a model: implements the worker protocol over `--fd N`, and misbehaves on request.

The name of the model folder chooses how it loads:

    slow_ready      connects to the port of 127.0.0.1 in the folder's file `gate`, and is loaded once it has read a byte
    crash_on_load   prints an error and exits with code 3
    fail_load       answers LoadFailed
    garbage_on_load answers with invalid bytes
    close_on_load   closes its end, creates the file `closed` in the folder, and stays alive
    ignore_shutdown loads, but ignores Shutdown and end of file; exits on SIGTERM
    hang_on_stop    loads, but ignores Shutdown, end of file and SIGTERM
    slow_load       loads slowly and sends pulses meanwhile
    never_ready     as a rank: never ready
    stuck           as a rank: executes no plan
    peer_lost       as a rank: exits at the first plan, because the connection to another rank was lost
    crash_on_plan   as a rank: exits at the first plan
    leave_child     loads, and leaves a process behind that keeps its output open; the file `child` has the pid
    anything else   loads at once

The last message, the text or the token ids of a prompt choose how it responds:

    crash           one word, then an error on standard error and exit code 7
    fail            one word, then Failed
    garbage         one word, then invalid bytes
    damaged         Failed, because of the last image
    flood           four times the daemon's buffer limit at once, then Completed
    stall           one word, then nothing until cancelled
    slow            one word, then only pulses for about a second, then Completed
    hold            one word, then nothing until the file `release` exists in the folder, then Completed
    think           reasoning, then one word
    call            a call of the first tool, in pieces
    anything else   the prompt itself, word by word, interleaved with other requests, `n` times, up to `max_tokens`
                    words, with log-probabilities if requested, and after the prompt if `echo` is set

Each prompt has one token, each word is one, and reasoning is two.

The environment variable PYTHON_FAKE_WORKER, which workers inherit because of its prefix, chooses what happens first:

    wrong_version   a Hello with another version
    garbage         invalid bytes instead of Hello
    silent          no Hello
    die_at_once     an error and exit code 3 instead of Hello
    brief           Hello and Loaded without a request, then exit code 5

As a rank of a group, it sends RankReady and waits for Connect. Rank 0 sends a plan before each step; others execute the
plans.

A file `serving_bytes` in the folder sets `Loaded.serving_bytes`. The worker writes these files into the folder:
`received` (the tags of received frames, one per line), `load.json` (the load request), `loaded` (empty, once Loaded is
sent), `limits.jsonl` (later limits, one per line), `images.json` (the last request with blobs, and its blobs),
`connect.json` and `plans` (as a rank: the request to connect, and the numbers of executed plans, one per line).
"""

import os
import select
import signal
import socket
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
    Started,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from osaurusd.inference.request import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from osaurusd.rpc import framing, messages
from osaurusd.wire.errors import ErrorCode

INVALID_BYTES = b"\xff" * 64
SLOW_STEPS = 12
SLOW_SECONDS = 0.1
FLOOD_BYTES = 4 * 1024 * 1024
FLOOD_DELTA = "x" * 64 * 1024
LOADED = messages.Loaded(device="fake", dtype="none", memory_bytes=1234, batched=True)
STATS = messages.Stats(active_bytes=1000, cache_bytes=234)


class FakeWorker:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = framing.FrameDecoder(messages.TO_WORKER)
        self._running: dict[int, Iterator[list[messages.Frame]]] = {}
        self._folder: Path | None = None
        self._ignores_shutdown = False
        self._rank: messages.RankSpec | None = None
        self._plans = 0

    def run(self) -> None:
        """Serve until the daemon closes its end or sends Shutdown."""
        misbehave_at_start(self._connection)
        self.send(messages.Hello(version=__version__))
        while True:
            while self._readable(wait=not self._running):
                if not self._read():
                    return
            self._step()

    def send(self, *frames: messages.Frame) -> None:
        self._connection.sendall(framing.encode(frames))

    def _readable(self, *, wait: bool) -> bool:
        readable, _, _ = select.select([self._connection], [], [], None if wait else 0)
        return bool(readable)

    def _read(self) -> bool:
        """Handle what has arrived; False if the worker is to exit."""
        data = self._connection.recv(65536)
        if not data:
            return self._shut_down()
        self._frames.feed(data)
        while (received := self._frames.next()) is not None:
            if received.blobs and self._folder is not None:
                content = {"request": received.frame, "blobs": received.blobs}
                (self._folder / "images.json").write_bytes(msgspec.json.encode(content))
            if not self._handle(received.frame):
                return False
        return True

    def _shut_down(self) -> bool:
        if self._ignores_shutdown:
            hang()
        return False

    def _handle(self, frame: messages.ToWorker) -> bool:
        if self._folder is not None and not isinstance(frame, messages.Limits):
            self._log_received(frame)
        match frame:
            case messages.Shutdown():
                return self._shut_down()
            case messages.Load():
                self._folder = Path(frame.path)
                self._log_received(frame)
                (self._folder / "load.json").write_bytes(msgspec.json.encode(frame))
                self._rank = frame.rank
                if self._rank is None:
                    self._load(self._folder)
                else:
                    self._get_ready(self._rank)
            case messages.Connect() | messages.Plan():
                self._handle_as_rank(frame)
            case messages.Limits():
                assert self._folder is not None
                with (self._folder / "limits.jsonl").open("ab") as file:
                    file.write(msgspec.json.encode(frame) + b"\n")
            case messages.Generate():
                self._generate(frame)
            case messages.Cancel():
                self._running.pop(frame.id, None)
        return True

    def _log_received(self, frame: messages.ToWorker) -> None:
        assert self._folder is not None
        with (self._folder / "received").open("a") as file:
            file.write(f"{type(frame).__struct_config__.tag}\n")

    def _load(self, folder: Path) -> None:
        match folder.name:
            case "slow_ready":
                with socket.create_connection(("127.0.0.1", int((folder / "gate").read_text()))) as gate:
                    gate.recv(1)
            case "crash_on_load":
                die("cannot allocate the weights", 3)
            case "fail_load":
                self.send(messages.LoadFailed(message="the weights are missing"))
                return
            case "garbage_on_load":
                self._connection.sendall(INVALID_BYTES)
                return
            case "close_on_load":
                self._connection.close()
                (folder / "closed").touch()
                hang()
            case "ignore_shutdown":
                self._ignores_shutdown = True
            case "hang_on_stop":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                self._ignores_shutdown = True
            case "leave_child":
                command = [sys.executable, "-c", "import time; time.sleep(60)"]
                without_socket = [(os.POSIX_SPAWN_CLOSE, self._connection.fileno())]
                child = os.posix_spawn(sys.executable, command, os.environ, file_actions=without_socket)
                (folder / "child").write_text(str(child))
            case "slow_load":
                self._load_slowly()
        serving_bytes = folder / "serving_bytes"
        size = int(serving_bytes.read_text()) if serving_bytes.exists() else 0
        self.send(msgspec.structs.replace(LOADED, serving_bytes=size), STATS)
        (folder / "loaded").touch()

    def _get_ready(self, rank: messages.RankSpec) -> None:
        assert self._folder is not None
        if self._folder.name == "never_ready":
            hang()
        self.send(messages.RankReady(port=5000 + rank.rank))

    def _handle_as_rank(self, frame: messages.Connect | messages.Plan) -> None:
        assert self._folder is not None
        if isinstance(frame, messages.Connect):
            (self._folder / "connect.json").write_bytes(msgspec.json.encode(frame))
            if self._folder.name == "cannot_join":
                os.kill(os.getpid(), signal.SIGALRM)
            self._load(self._folder)
            return
        match self._folder.name:
            case "stuck":
                return
            case "peer_lost":
                time.sleep(0.1)
                die("RuntimeError: [ring] connection to a peer was lost", 1)
            case "crash_on_plan":
                time.sleep(0.5)
                die("the GPU caught fire", 7)
        with (self._folder / "plans").open("a") as file:
            file.write(f"{frame.number}\n")
        self.send(messages.Pulse(progress=frame.number, plan=frame.number))

    def _load_slowly(self) -> None:
        for step in range(SLOW_STEPS):
            self.send(messages.Pulse(progress=step + 1))
            time.sleep(SLOW_SECONDS)

    def _generate(self, frame: messages.Generate) -> None:
        text = prompt_text(frame.request.prompt)
        if text == "damaged":
            location = ("images", 1)
            self.send(messages.Failed(id=frame.id, code=ErrorCode.INVALID_REQUEST, message="no", location=location))
            return
        self.send(messages.Output(id=frame.id, event=Started(prompt_tokens=1)))
        if frame.request.count_only:
            self.send(completed(frame.id, 0))
            return
        match text:
            case "crash" | "fail" | "garbage" | "stall":
                self._send_step(delta(frame.id, text=f"{text} "))
                self._misbehave(text, frame.id)
            case "flood":
                deltas = [delta(frame.id, text=FLOOD_DELTA)] * (FLOOD_BYTES // len(FLOOD_DELTA))
                self.send(*deltas, finished(frame.id, reason="stop"), completed(frame.id, 0))
            case "slow":
                self.send(delta(frame.id, text="slow "))
                self._running[frame.id] = generate_slowly(frame)
            case "hold":
                assert self._folder is not None
                self.send(delta(frame.id, text="hold "))
                self._running[frame.id] = wait_for_release(frame, self._folder / "release")
            case "think":
                self._running[frame.id] = think(frame)
            case "call":
                self._running[frame.id] = call_tool(frame)
            case _:
                self._running[frame.id] = repeat_prompt(frame, text)

    def _misbehave(self, how: str, id_: int) -> None:
        match how:
            case "crash":
                die("the GPU caught fire", 7)
            case "fail":
                code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
                self.send(messages.Failed(id=id_, code=code, message="too long", location=("prompt",)))
            case "garbage":
                self._connection.sendall(INVALID_BYTES)

    def _step(self) -> None:
        """Send the next word of every running request in one write."""
        frames: list[messages.Frame] = []
        for id_, steps in list(self._running.items()):
            step = next(steps, None)
            if step is None:
                del self._running[id_]
            else:
                frames += step
        if frames:
            self._send_step(*frames)

    def _send_step(self, *frames: messages.Frame) -> None:
        """Send the output of a step, after its plan."""
        if self._rank is not None:
            self._plans += 1
            self.send(messages.Plan(number=self._plans, operations=msgspec.Raw(b"[]")))
        self.send(*frames)


def misbehave_at_start(connection: socket.socket) -> None:
    match os.environ.get("PYTHON_FAKE_WORKER"):
        case "wrong_version":
            connection.sendall(framing.encode([messages.Hello(version="0.0.0")]))
            hang()
        case "garbage":
            connection.sendall(INVALID_BYTES)
            hang()
        case "silent":
            hang()
        case "die_at_once":
            die("library not found", 3)
        case "brief":
            connection.sendall(framing.encode([messages.Hello(version=__version__), LOADED]))
            sys.exit(5)


def prompt_text(prompt: Prompt) -> str:
    match prompt:
        case ChatPrompt():
            return prompt.messages[-1].text
        case TextPrompt():
            return prompt.text
        case TokenPrompt():
            return " ".join(map(str, prompt.tokens))


def repeat_prompt(frame: messages.Generate, text: str) -> Iterator[list[messages.Frame]]:
    request = frame.request
    words = [f"{word} " for word in text.split()]
    reason: FinishReason = "stop"
    if request.max_tokens is not None and request.max_tokens < len(words):
        words, reason = words[: request.max_tokens], "length"
    choices = range(request.n)

    def token_logprobs(word: str, logprob: float | None) -> list[TokenLogprob]:
        return [] if request.logprobs is None else [token_logprob(word, logprob, request.logprobs)]

    if request.echo:
        yield [delta(frame.id, index=index, text=text, logprobs=token_logprobs(text, None)) for index in choices]
    for word in words:
        yield [delta(frame.id, index=index, text=word, logprobs=token_logprobs(word, -0.5)) for index in choices]
    ends = [finished(frame.id, index=index, reason=reason) for index in choices]
    yield [*ends, completed(frame.id, request.n * len(words))]


def token_logprob(text: str, logprob: float | None, alternatives: int) -> TokenLogprob:
    top = [Logprob(text=f"{rank}", bytes=[*b"%d" % rank], logprob=-1.0 - rank) for rank in range(alternatives)]
    return TokenLogprob(text=text, bytes=[*text.encode()], logprob=logprob, top=[] if logprob is None else top)


def generate_slowly(frame: messages.Generate) -> Iterator[list[messages.Frame]]:
    for step in range(SLOW_STEPS):
        time.sleep(SLOW_SECONDS)
        yield [messages.Pulse(progress=step + 1)]
    yield [finished(frame.id, reason="stop"), completed(frame.id, 1)]


def wait_for_release(frame: messages.Generate, release: Path) -> Iterator[list[messages.Frame]]:
    while not release.exists():
        time.sleep(0.01)
        yield []
    yield [finished(frame.id, reason="stop"), completed(frame.id, 1)]


def think(frame: messages.Generate) -> Iterator[list[messages.Frame]]:
    yield [delta(frame.id, reasoning="Hm. ")]
    yield [delta(frame.id, reasoning="Yes.")]
    yield [delta(frame.id, text="thought")]
    yield [finished(frame.id, reason="stop"), completed(frame.id, 3, reasoning_tokens=2)]


def call_tool(frame: messages.Generate) -> Iterator[list[messages.Frame]]:
    assert isinstance(frame.request.prompt, ChatPrompt)
    name = frame.request.prompt.tools[0].name
    yield [delta(frame.id, tool_calls=[ToolCallDelta(index=0, id="call_1", name=name)])]
    yield [delta(frame.id, tool_calls=[ToolCallDelta(index=0, arguments='{"a":')])]
    yield [delta(frame.id, tool_calls=[ToolCallDelta(index=0, arguments=" 1}")])]
    yield [finished(frame.id, reason="tool_calls"), completed(frame.id, 3)]


def delta(id_: int, **fields) -> messages.Output:
    return messages.Output(id=id_, event=Delta(**fields))


def finished(id_: int, **fields) -> messages.Output:
    return messages.Output(id=id_, event=Finished(**fields))


def completed(id_: int, tokens: int, reasoning_tokens: int = 0) -> messages.Output:
    usage = Usage(prompt_tokens=1, completion_tokens=tokens, reasoning_tokens=reasoning_tokens)
    return messages.Output(id=id_, event=Completed(usage=usage))


def die(error: str, code: int) -> NoReturn:
    print("not the last line", file=sys.stderr)
    print(error, file=sys.stderr, flush=True)
    os._exit(code)


def hang() -> NoReturn:
    while True:
        time.sleep(60)


def main() -> None:
    """Serve on the inherited socket."""
    # argparse, subprocess and asyncio would take longer to import than most tests take.
    option, fd = sys.argv[1:]
    assert option == "--fd"
    with socket.socket(fileno=int(fd)) as connection:
        FakeWorker(connection).run()


if __name__ == "__main__":
    main()
