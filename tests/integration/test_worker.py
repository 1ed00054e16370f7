"""The worker protocol: a real worker process that loads models and generates output."""

import itertools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import mlx.core as mx
import psutil
import pytest
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, load_tokenizer

import osaurusd
from osaurusd.inference.events import Completed, Delta, Finished
from osaurusd.inference.request import (
    ChatPrompt,
    GenerationRequest,
    JsonSchema,
    Message,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from osaurusd.rpc import framing, messages
from osaurusd.rpc.process import WORKER_COMMAND, WORKER_ENVIRONMENT
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine.planner import MAX_SEQUENCES
from tests.models import make_tiny

TIMEOUT_SECONDS = 60
EXIT_CPU_SECONDS = 1
CONTEXT_LENGTH = 16384
MANY_TOKENS = 15000
TOO_LONG = "word " * 20_000
LOAD_OPTIONS = {"context_length": CONTEXT_LENGTH, "memory_limit_bytes": 2**36}


def is_final(frame):
    """Whether a frame is the last one of a request."""
    return isinstance(frame, messages.Failed) or (
        isinstance(frame, messages.Output) and isinstance(frame.event, Completed)
    )


def select_events(frames, id_, kind):
    return [frame.event for frame in select_outputs(frames, id_) if isinstance(frame.event, kind)]


def select_outputs(frames, id_):
    return [frame for frame in frames if isinstance(frame, messages.Output) and frame.id == id_]


class Worker:
    """A worker process, connected by a socket in place of the daemon."""

    def __init__(self, folder):
        self.socket, worker_socket = socket.socketpair()
        self.socket.settimeout(TIMEOUT_SECONDS)
        self._decoder = framing.FrameDecoder(messages.FROM_WORKER)
        self._ids = itertools.count(1)
        with worker_socket:
            self.process = subprocess.Popen(
                [*WORKER_COMMAND, "--fd", str(worker_socket.fileno())],
                pass_fds=[worker_socket.fileno()],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **WORKER_ENVIRONMENT},
            )

    def send(self, *frames):
        self.socket.sendall(framing.encode(frames))

    def read(self):
        """Read the next frame that is not a pulse; None at the end of the stream."""
        while True:
            frame = self._decoder.next_frame()
            if frame is None:
                if not (data := self.socket.recv(65536)):
                    return None
                self._decoder.feed(data)
            elif not isinstance(frame, messages.Pulse):
                return frame

    def load(self, folder, **options):
        """Load a model and return the worker's reply."""
        self.send(messages.Load(path=str(folder), **{**LOAD_OPTIONS, **options}))
        reply = self.read()
        while isinstance(reply, messages.Stats | messages.Output | messages.Failed):
            reply = self.read()
        return reply

    def build_request(self, text="tell me", max_tokens=8, sampling=None, prompt=None, **options):
        """Build a request frame with a new id."""
        request = GenerationRequest(
            prompt=prompt or ChatPrompt(messages=[Message.from_text("user", text)]),
            sampling=sampling or SamplingParams(temperature=0),
            max_tokens=max_tokens,
            **options,
        )
        return messages.Generate(id=next(self._ids), request=request)

    def read_until_completed(self, *ids):
        """Read frames until each of these requests has completed or failed."""
        frames = []
        while not set(ids) <= {frame.id for frame in frames if is_final(frame)}:
            frames.append(self.read())
        return frames

    def start_requests(self, *requests):
        """Send requests and read frames until each has its first output."""
        self.send(*requests)
        frames = []
        while not {request.id for request in requests} <= {
            frame.id for frame in frames if isinstance(frame, messages.Output) and isinstance(frame.event, Delta)
        }:
            frames.append(self.read())
        return frames

    def complete(self, *args, **options):
        """Run a request and return its text and its last event or failure."""
        frames, id_ = self.run(*args, **options)
        return collect_text(frames, id_), last_event(frames, id_)

    def run(self, *args, **options):
        """Run a request and return its frames and its id."""
        request = self.build_request(*args, **options)
        self.send(request)
        return self.read_until_completed(request.id), request.id

    def close(self):
        self.socket.close()

    def kill(self):
        self.close()
        self.process.kill()
        self.process.wait()


def collect_text(frames, id_, index=0):
    return "".join(delta.text for delta in select_events(frames, id_, Delta) if delta.index == index)


def finish_reason(frames, id_, index=0):
    (end,) = [finished for finished in select_events(frames, id_, Finished) if finished.index == index]
    return end.reason


def last_event(frames, id_):
    (end,) = [frame for frame in frames if is_final(frame) and frame.id == id_]
    return end if isinstance(end, messages.Failed) else end.event


@pytest.fixture(scope="module")
def start_worker(tmp_path_factory):
    """Start workers, and kill the ones still running after the tests."""
    workers = []

    def start_worker():
        workers.append(Worker(tmp_path_factory.mktemp("cwd")))
        assert osaurusd.__version__ == workers[-1].read().version
        return workers[-1]

    yield start_worker
    for worker in workers:
        worker.kill()


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer, tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"), tiny_tokenizer, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(tiny, {"trust_remote_code": False})


@pytest.fixture(scope="module")
def serving(start_worker, tiny):
    """A worker with the tiny model."""
    worker = start_worker()
    assert isinstance(worker.load(tiny), messages.Loaded)
    return worker


@pytest.fixture(scope="module")
def caching(start_worker, tiny):
    """A worker with the tiny model and a prefix cache."""
    worker = start_worker()
    assert isinstance(worker.load(tiny, prefix_cache_bytes=2**28), messages.Loaded)
    return worker


@pytest.fixture(scope="module")
def loading(start_worker):
    """A worker that loads a different model in each test."""
    return start_worker()


# Loading


def load_weights(folder: Path) -> dict[str, mx.array]:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    return weights


def test_load_reports_dtype_memory_and_device(loading, tiny):
    loaded = loading.load(tiny)

    assert isinstance(loaded, messages.Loaded)
    assert loaded.dtype == "float32"
    assert loaded.batched
    weights = sum(weight.nbytes for weight in load_weights(tiny).values())
    assert weights <= loaded.memory_bytes < 2 * weights
    assert (loaded.device == "cpu") == (mx.default_device() == mx.cpu)
    stats = loading.read()
    assert isinstance(stats, messages.Stats)
    assert stats.active_bytes >= weights


def corrupt_config(folder):
    (folder / "config.json").write_text("{")


def corrupt_weights(folder):
    (folder / "model.safetensors").write_bytes(b"nonsense")


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def remove_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def set_unknown_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "unknown"}))


@pytest.mark.parametrize(
    "damage", [corrupt_config, corrupt_weights, remove_weights, remove_tokenizer, set_unknown_architecture]
)
def test_broken_folder_fails_the_load_but_not_the_worker(loading, tiny, tmp_path, damage):
    broken = shutil.copytree(tiny, tmp_path / "broken")
    damage(broken)

    reply = loading.load(broken)

    assert isinstance(reply, messages.LoadFailed)
    assert reply.message
    assert loading.process.poll() is None


def test_worker_can_load_another_model_after_a_failed_load(loading, tiny, tmp_path):
    assert isinstance(loading.load(tmp_path / "absent"), messages.LoadFailed)

    assert isinstance(loading.load(tiny), messages.Loaded)


@pytest.fixture(scope="module")
def quantized(tiny_tokenizer, tmp_path_factory):
    """A tiny model quantized to 4 bits, with 16-bit scales."""
    folder = make_tiny(tmp_path_factory.mktemp("quantized"), tiny_tokenizer)
    network, config = load_model(folder)
    network.set_dtype(mx.float16)
    quantize(network, group_size=32, bits=4)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())), {"format": "mlx"})
    config = {**config, "quantization": {"group_size": 32, "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def half_precision(tiny_tokenizer, tmp_path_factory):
    """A tiny model with 16-bit weights."""
    folder = make_tiny(tmp_path_factory.mktemp("half_precision"), tiny_tokenizer)
    network, _ = load_model(folder)
    network.set_dtype(mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())), {"format": "mlx"})
    return folder


# On a CPU, `auto` converts all weights to float32.
AUTO = "float32" if mx.default_device() == mx.cpu else None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dequantize": "never"}, "4-bit"),
        ({"dequantize": "always"}, "float32"),
        ({"dequantize": "auto"}, AUTO or "4-bit"),
        ({"dequantize": "auto", "memory_limit_bytes": None}, AUTO or "4-bit"),
    ],
)
def test_quantized_weights_are_dequantized_as_configured(loading, quantized, options, expected):
    loaded = loading.load(quantized, **options)

    assert loaded.dtype == expected
    text, end = loading.complete("hello", 2)
    assert isinstance(end, Completed)
    assert text


def test_quantized_weights_stay_quantized_if_float32_exceeds_the_memory_limit(loading, quantized):
    assert "4-bit" == loading.load(quantized, memory_limit_bytes=2**19).dtype


@pytest.mark.parametrize(
    ("dequantize", "expected"), [("never", "bfloat16"), ("always", "float32"), ("auto", AUTO or "bfloat16")]
)
def test_16_bit_weights_are_converted_as_configured(loading, half_precision, dequantize, expected):
    loaded = loading.load(half_precision, dequantize=dequantize)

    assert loaded.dtype == expected
    assert isinstance(loading.complete("hello", 2)[1], Completed)


def test_template_error_is_an_invalid_request(loading, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "broken_template")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content + 1 }}")
    assert isinstance(loading.load(folder), messages.Loaded)

    _, end = loading.complete("hello")

    assert isinstance(end, messages.Failed)
    assert (ErrorCode.INVALID_REQUEST, ("prompt", "messages")) == (end.code, end.location)
    assert "can only concatenate str" in end.message


def test_model_without_a_template_is_prompted_with_role_prefixed_lines(loading, tiny, tokenizer, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "no_template")
    (folder / "chat_template.jinja").unlink()
    assert isinstance(loading.load(folder), messages.Loaded)

    _, end = loading.complete("hello", 2)

    assert len(tokenizer.encode("user: hello\nassistant:")) == end.usage.prompt_tokens


# Generation


def test_greedy_output_is_complete_and_repeatable(serving, tokenizer):
    frames, id_ = serving.run("tell me", 12)

    text, end = collect_text(frames, id_), last_event(frames, id_)
    assert text
    chat = [{"role": "user", "content": "tell me"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert ("length", len(prompt), 12) == (
        finish_reason(frames, id_),
        end.usage.prompt_tokens,
        end.usage.completion_tokens,
    )
    assert text == serving.complete("tell me", 12)[0]


def test_memory_is_reported_after_a_request(serving):
    request = serving.build_request(max_tokens=3)
    serving.send(request)
    serving.read_until_completed(request.id)

    stats = serving.read()

    assert isinstance(stats, messages.Stats)
    assert stats.active_bytes > 0


def test_concurrent_requests_overlap_and_match_sequential_output(serving):
    texts = ["one", "tell me of dinosaurs", "word " * 150]
    alone = [serving.complete(text, 50)[0] for text in texts]
    requests = [serving.build_request(text, 50) for text in texts]
    serving.send(*requests)

    frames = serving.read_until_completed(*[request.id for request in requests])

    assert alone == [collect_text(frames, request.id) for request in requests]
    ends = {frame.id: position for position, frame in enumerate(frames) if is_final(frame)}
    for request, other in itertools.permutations(requests, 2):
        first = frames.index(select_outputs(frames, request.id)[0])
        assert first < ends[other.id], "a request waited for another one to complete"


def test_seed_repeats_the_output_in_a_batch(serving):
    seeded = SamplingParams(temperature=1.5, top_p=0.9, seed=3)
    alone, _ = serving.complete("tell me", 10, seeded)
    request = serving.build_request("tell me", 10, seeded)
    others = [serving.build_request("x", 20, SamplingParams(temperature=2)) for _ in range(2)]

    serving.send(others[0], request, others[1])
    frames = serving.read_until_completed(*[item.id for item in (request, *others)])

    assert alone == collect_text(frames, request.id)


def test_output_ends_before_the_stop_string(serving):
    text, _ = serving.complete("tell me", 12)
    stop = text[len(text) // 2 :][:3]

    frames, id_ = serving.run("tell me", 12, stop=[stop])

    assert text[: text.index(stop)] == collect_text(frames, id_)
    assert "stop" == finish_reason(frames, id_)


def test_repeated_prompt_is_served_from_the_prefix_cache(caching):
    question = Message.from_text("user", "word " * 300)
    cold, first = caching.complete(prompt=ChatPrompt(messages=[question]), max_tokens=12)

    warm, second = caching.complete(prompt=ChatPrompt(messages=[question]), max_tokens=12)
    chat = [question, Message.from_text("assistant", cold), Message.from_text("user", "and?")]
    _, third = caching.complete(prompt=ChatPrompt(messages=chat), max_tokens=12)

    assert cold == warm
    assert [0, first.usage.prompt_tokens - 1] == [first.usage.cached_tokens, second.usage.cached_tokens]
    assert third.usage.cached_tokens >= first.usage.prompt_tokens


def test_prefix_cache_size_is_reported_and_limited(start_worker, tiny):
    worker = start_worker()
    limit = 200_000
    assert isinstance(worker.load(tiny, prefix_cache_bytes=limit), messages.Loaded)
    assert worker.read().prefix_cache_bytes == 0

    sizes = []
    for number in range(4):
        worker.complete(f"{number} word " * 200, 2)
        sizes.append(worker.read().prefix_cache_bytes)

    assert 0 < max(sizes) <= limit


def test_choices_share_their_prompt(serving):
    sampling = SamplingParams(temperature=1.5, seed=3)
    frames, id_ = serving.run("tell me", 8, sampling, n=3)

    assert 3 == len({collect_text(frames, id_, index) for index in range(3)})
    assert ["length"] * 3 == [finish_reason(frames, id_, index) for index in range(3)]
    end = last_event(frames, id_)
    assert (24, end.usage.prompt_tokens) == (
        end.usage.completion_tokens,
        serving.complete("tell me", 1)[1].usage.prompt_tokens,
    )


def test_token_and_text_prompts_are_continued(serving, tokenizer):
    tokens = tokenizer.encode("Once upon a time")

    as_text, end = serving.complete(prompt=TextPrompt(text="Once upon a time"))
    as_tokens, _ = serving.complete(prompt=TokenPrompt(tokens=tokens))

    assert as_text == as_tokens != ""
    assert len(tokens) == end.usage.prompt_tokens


def test_echoed_prompt_has_logprobs(serving, tokenizer):
    frames, id_ = serving.run(prompt=TextPrompt(text="Once upon a time"), max_tokens=2, echo=True, logprobs=2)

    tokens = [token for delta in select_events(frames, id_, Delta) for token in delta.logprobs]
    count = len(tokenizer.encode("Once upon a time"))
    assert collect_text(frames, id_).startswith("Once upon a time")
    assert collect_text(frames, id_) == "".join(token.text for token in tokens)
    assert [None, *[2] * (count + 1)] == [token.logprob and len(token.top) for token in tokens]
    for token in tokens[1:]:
        assert token.logprob <= token.top[0].logprob < 0


def test_structured_output_does_not_affect_other_requests(serving):
    alone, _ = serving.complete("tell me", 60)
    unconstrained = serving.build_request("tell me", 60)
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    constrained = serving.build_request("tell me", 60, constraint=JsonSchema(schema=schema))

    serving.send(unconstrained, constrained)
    frames = serving.read_until_completed(unconstrained.id, constrained.id)

    assert alone == collect_text(frames, unconstrained.id)
    assert "stop" == finish_reason(frames, constrained.id)
    assert json.loads(collect_text(frames, constrained.id))["a"] in (1, 2)


def test_request_that_exceeds_the_memory_limit_is_rejected(start_worker, tiny):
    worker = start_worker()
    assert isinstance(worker.load(tiny), messages.Loaded)
    limit = worker.read().active_bytes + 20 * 2**20
    loaded = worker.load(tiny, memory_limit_bytes=limit, context_length=100_000)
    assert isinstance(loaded, messages.Loaded)

    end = worker.complete("tell me", 99_000)[1]

    assert (ErrorCode.REQUEST_EXCEEDS_MEMORY, ("max_tokens",)) == (end.code, end.location)
    assert isinstance(worker.complete("tell me", 8)[1], Completed)


def test_full_queue_rejects_requests(start_worker, tiny):
    worker = start_worker()
    assert isinstance(worker.load(tiny, max_waiting=2), messages.Loaded)
    requests = [worker.build_request("tell me", 20, n=8) for _ in range(8)]
    worker.send(*requests)

    frames = worker.read_until_completed(*[request.id for request in requests])

    rejected = [frame for frame in frames if isinstance(frame, messages.Failed)]
    assert {ErrorCode.QUEUE_FULL} == {frame.code for frame in rejected}
    assert 1 <= len(rejected) <= 8 - MAX_SEQUENCES // 8 - 2


def test_long_prompt_does_not_stall_running_requests(start_worker, tiny):
    worker = start_worker()
    assert isinstance(worker.load(tiny, context_length=65536), messages.Loaded)
    running, long = worker.build_request("tell me", 60_000), worker.build_request("word " * 2000)
    frames = worker.start_requests(running)

    worker.send(long)
    frames = worker.read_until_completed(long.id)

    first = frames.index(next(frame for frame in select_outputs(frames, long.id) if isinstance(frame.event, Delta)))
    assert len(select_outputs(frames[:first], running.id)) >= 5
    worker.send(messages.Cancel(id=running.id))


def test_output_ends_at_the_context_length(loading, tiny):
    assert isinstance(loading.load(tiny, context_length=64), messages.Loaded)

    for limit in (None, 1000):
        frames, id_ = loading.run("tell me", limit)

        end = last_event(frames, id_)
        assert "length" == finish_reason(frames, id_)
        assert end.usage.prompt_tokens + end.usage.completion_tokens == 64


def test_prompt_over_the_context_length_does_not_affect_other_requests(serving):
    alone, _ = serving.complete("tell me", 40)
    other, long = serving.build_request("tell me", 40), serving.build_request(TOO_LONG)
    frames = serving.start_requests(other)

    serving.send(long)
    frames += serving.read_until_completed(other.id, long.id)

    end = last_event(frames, long.id)
    assert (ErrorCode.CONTEXT_LENGTH_EXCEEDED, ("prompt",)) == (end.code, end.location)
    assert str(CONTEXT_LENGTH) in end.message
    assert alone == collect_text(frames, other.id)


# Cancellation


def test_cancelled_request_stops_within_one_step(serving):
    request, other = serving.build_request("tell me", MANY_TOKENS), serving.build_request("and me", MANY_TOKENS)
    rejected = serving.build_request(TOO_LONG)
    serving.start_requests(request, other)

    # The worker rejects the long request after it has read the cancel; only the current step may still include it.
    serving.send(messages.Cancel(id=request.id), rejected)
    serving.read_until_completed(rejected.id)
    after = [serving.read() for _ in range(30)]

    assert len(select_outputs(after, request.id)) <= 1
    assert len(select_outputs(after, other.id)) >= 29
    serving.send(messages.Cancel(id=other.id))


def test_cancelling_does_not_affect_other_requests(serving):
    alone, _ = serving.complete("and me", 30)
    request, other = serving.build_request("tell me", MANY_TOKENS), serving.build_request("and me", 30)
    frames = serving.start_requests(request, other)

    serving.send(messages.Cancel(id=request.id))
    frames += serving.read_until_completed(other.id)

    assert alone == collect_text(frames, other.id)
    assert not [frame for frame in frames if is_final(frame) and frame.id == request.id]


def test_request_can_be_cancelled_while_it_is_tokenized(serving):
    request = serving.build_request("word " * 1000, MANY_TOKENS)

    serving.send(request, messages.Cancel(id=request.id))

    other = serving.build_request("hello", 30)
    serving.send(other)
    assert request.id not in {getattr(frame, "id", None) for frame in serving.read_until_completed(other.id)}


def test_cancelling_an_unknown_request_is_ignored(serving):
    serving.send(messages.Cancel(id=10_000))

    assert isinstance(serving.complete("hello", 3)[1], Completed)


# Shutdown


def test_keyboard_interrupt_is_ignored(serving):
    request = serving.build_request("tell me", 60)
    frames = serving.start_requests(request)

    serving.process.send_signal(signal.SIGINT)

    frames += serving.read_until_completed(request.id)
    assert last_event(frames, request.id).usage.completion_tokens == 60
    assert isinstance(serving.complete("hello", 3)[1], Completed)


def test_worker_exits_promptly_when_the_connection_closes(start_worker, tiny):
    worker = start_worker()
    worker.load(tiny)
    worker.start_requests(*[worker.build_request("tell me", MANY_TOKENS) for _ in range(3)])
    # A worker that is stopped uses no CPU time before the connection closes.
    worker.process.send_signal(signal.SIGSTOP)
    started_at = sum(psutil.Process(worker.process.pid).cpu_times()[:2])
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)

    worker.close()
    worker.process.send_signal(signal.SIGCONT)

    assert worker.process.wait(TIMEOUT_SECONDS) == 0
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended_at = usage.ru_utime + usage.ru_stime - reaped.ru_utime - reaped.ru_stime
    assert ended_at - started_at < EXIT_CPU_SECONDS
