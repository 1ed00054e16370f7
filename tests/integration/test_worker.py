"""The real worker process, spoken to as the daemon does."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, load_tokenizer

import osaurusd
from osaurusd.inference.events import Completed, Delta, Finished
from osaurusd.inference.request import ChatPrompt, JsonSchema, Message, SamplingParams, TextPrompt, TokenPrompt
from osaurusd.rpc import framing, messages
from osaurusd.rpc.process import WORKER_COMMAND, WORKER_ENVIRONMENT
from osaurusd.wire.errors import ErrorCode
from osaurusd.worker.engine.planner import MAX_SEQUENCES
from tests.models import make_tiny

SECONDS = 60
PROMPTLY = 5
CONTEXT = 1024
ENDLESS = 900
LIMITS = {"context_length": CONTEXT, "memory_limit_bytes": 2**36}
ENDS = Completed | messages.Failed


class Worker:
    """A worker process and the daemon's end of its socket."""

    def __init__(self, folder):
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.socket.settimeout(SECONDS)
        self._stream = ours.makefile("rb")
        self._ids = itertools.count(1)
        with theirs:
            self.process = subprocess.Popen(
                [*WORKER_COMMAND, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **WORKER_ENVIRONMENT},
            )

    def send(self, *frames):
        self.socket.sendall(framing.encode(frames))

    def read(self):
        """The next frame that is no pulse, None at the end."""
        while len(head := self._stream.read(4)) == 4:
            frame = messages.FROM_WORKER.decode(self._stream.read(int.from_bytes(head, "big")))
            if not isinstance(frame, messages.Pulse):
                return frame
        return None

    def load(self, folder, **options):
        """The answer to an order to load."""
        self.send(messages.Load(path=str(folder), **{**LIMITS, **options}))
        answer = self.read()
        while isinstance(answer, messages.Stats | Delta | ENDS):
            answer = self.read()
        return answer

    def order(self, text="tell me", max_tokens=8, sampling=None, prompt=None, **options):
        """A request with an id of its own."""
        return messages.Generate(
            id=next(self._ids),
            prompt=prompt or ChatPrompt(messages=[Message(role="user", content=text)]),
            sampling=sampling or SamplingParams(temperature=0),
            max_tokens=max_tokens,
            **options,
        )

    def until_ended(self, *ids):
        """All frames until each of these requests has ended."""
        frames = []
        while not set(ids) <= {frame.id for frame in frames if isinstance(frame, ENDS)}:
            frames.append(self.read())
        return frames

    def begin(self, *orders):
        """Send orders; all frames until each has got its first one."""
        self.send(*orders)
        frames = []
        while not {order.id for order in orders} <= {getattr(frame, "id", None) for frame in frames}:
            frames.append(self.read())
        return frames

    def ask(self, *args, **options):
        """Text and end of a request."""
        frames, id_ = self.hear(*args, **options)
        return text_of(frames, id_), end_of(frames, id_)

    def hear(self, *args, **options):
        """All frames up to the end of a request, and its id."""
        order = self.order(*args, **options)
        self.send(order)
        return self.until_ended(order.id), order.id

    def close(self):
        self._stream.close()
        self.socket.close()

    def kill(self):
        self.close()
        self.process.kill()
        self.process.wait()


def text_of(frames, id_, index=0):
    deltas = [frame for frame in frames if isinstance(frame, Delta) and (frame.id, frame.index) == (id_, index)]
    return "".join(delta.text for delta in deltas)


def reason_of(frames, id_, index=0):
    ends = [frame for frame in frames if isinstance(frame, Finished) and (frame.id, frame.index) == (id_, index)]
    (end,) = ends
    return end.reason


def end_of(frames, id_):
    (end,) = [frame for frame in frames if isinstance(frame, ENDS) and frame.id == id_]
    return end


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts workers; those that still run at the end are killed."""
    workers = []

    def start():
        workers.append(Worker(tmp_path_factory.mktemp("cwd")))
        assert osaurusd.__version__ == workers[-1].read().version
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


@pytest.fixture(scope="module")
def tiny(smollm_folder, tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"), smollm_folder, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(tiny, {"trust_remote_code": False})


@pytest.fixture(scope="module")
def serving(start, tiny):
    """A worker that has loaded the tiny model."""
    worker = start()
    assert isinstance(worker.load(tiny), messages.Loaded)
    return worker


@pytest.fixture(scope="module")
def reusing(start, tiny):
    """The same with room for earlier prompts."""
    worker = start()
    assert isinstance(worker.load(tiny, prefix_cache_bytes=2**28), messages.Loaded)
    return worker


@pytest.fixture(scope="module")
def loading(start):
    """A worker that is told to load one thing after the other."""
    return start()


# Loading


def test_a_loaded_model_is_described(loading, tiny):
    loaded = loading.load(tiny)

    assert isinstance(loaded, messages.Loaded)
    assert loaded.dtype == "float32"
    assert loaded.batched
    weights = sum(weight.nbytes for weight in mx.load(str(tiny / "model.safetensors")).values())
    assert weights <= loaded.memory_bytes < 2 * weights
    assert (loaded.device == "cpu") == (mx.default_device() == mx.cpu)
    stats = loading.read()
    assert isinstance(stats, messages.Stats)
    assert stats.active_bytes >= weights


def break_config(folder):
    (folder / "config.json").write_text("{")


def break_weights(folder):
    (folder / "model.safetensors").write_bytes(b"nonsense")


def lose_weights(folder):
    (folder / "model.safetensors").unlink()


def lose_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def change_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "no_such_thing"}))


@pytest.mark.parametrize("damage", [break_config, break_weights, lose_weights, lose_tokenizer, change_architecture])
def test_a_broken_folder_is_refused_and_the_worker_lives_on(loading, tiny, tmp_path, damage):
    broken = shutil.copytree(tiny, tmp_path / "broken")
    damage(broken)

    answer = loading.load(broken)

    assert isinstance(answer, messages.LoadFailed)
    assert answer.message
    assert loading.process.poll() is None


def test_a_worker_that_refused_a_folder_can_still_load_another(loading, tiny, tmp_path):
    assert isinstance(loading.load(tmp_path / "absent"), messages.LoadFailed)

    assert isinstance(loading.load(tiny), messages.Loaded)


@pytest.fixture(scope="module")
def quantized(smollm_folder, tmp_path_factory):
    """A tiny model in 4 bits, whose scales are 16-bit."""
    folder = make_tiny(tmp_path_factory.mktemp("quantized"), smollm_folder)
    network, config = load_model(folder)
    network.set_dtype(mx.float16)
    nn.quantize(network, group_size=32, bits=4)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())), {"format": "mlx"})
    config = {**config, "quantization": {"group_size": 32, "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def half(smollm_folder, tmp_path_factory):
    """A tiny model in 16 bits."""
    folder = make_tiny(tmp_path_factory.mktemp("half"), smollm_folder)
    network, _ = load_model(folder)
    network.set_dtype(mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())), {"format": "mlx"})
    return folder


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
def test_packed_weights_are_widened_as_ordered(loading, quantized, options, expected):
    loaded = loading.load(quantized, **options)

    assert loaded.dtype == expected
    text, end = loading.ask("hello", 2)
    assert isinstance(end, Completed)
    assert text


def test_packed_weights_stay_packed_where_there_is_no_room_for_wide_ones(loading, quantized):
    assert "4-bit" == loading.load(quantized, memory_limit_bytes=4 * 2**20).dtype


@pytest.mark.parametrize(
    ("dequantize", "expected"), [("never", "bfloat16"), ("always", "float32"), ("auto", AUTO or "bfloat16")]
)
def test_narrow_weights_are_widened_as_ordered(loading, half, dequantize, expected):
    loaded = loading.load(half, dequantize=dequantize)

    assert loaded.dtype == expected
    assert isinstance(loading.ask("hello", 2)[1], Completed)


def test_a_template_that_fails_in_its_own_way_is_the_requests_fault(loading, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "odd")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content + 1 }}")
    assert isinstance(loading.load(folder), messages.Loaded)

    _, end = loading.ask("hello")

    assert isinstance(end, messages.Failed)
    assert (ErrorCode.INVALID_REQUEST, "messages") == (end.code, end.param)
    assert "can only concatenate str" in end.message


def test_a_model_without_a_template_is_asked_in_plain_lines(loading, tiny, tokenizer, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    assert isinstance(loading.load(folder), messages.Loaded)

    _, end = loading.ask("hello", 2)

    assert len(tokenizer.encode("user: hello\nassistant:")) == end.prompt_tokens


# Answering


def test_an_answer_is_complete_and_repeats(serving, tokenizer):
    frames, id_ = serving.hear("tell me", 12)

    text, end = text_of(frames, id_), end_of(frames, id_)
    assert text
    chat = [{"role": "user", "content": "tell me"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert ("length", len(prompt), 12) == (reason_of(frames, id_), end.prompt_tokens, end.completion_tokens)
    assert text == serving.ask("tell me", 12)[0]


def test_memory_is_reported_after_an_answer(serving):
    order = serving.order(max_tokens=3)
    serving.send(order)
    serving.until_ended(order.id)

    stats = serving.read()

    assert isinstance(stats, messages.Stats)
    assert stats.active_bytes > 0


def test_requests_at_once_are_answered_together_and_as_each_alone(serving):
    texts = ["one", "tell me of dinosaurs", "word " * 150]
    alone = [serving.ask(text, 15)[0] for text in texts]
    orders = [serving.order(text, 15) for text in texts]
    serving.send(*orders)

    frames = serving.until_ended(*[order.id for order in orders])

    assert alone == [text_of(frames, order.id) for order in orders]
    ids = [getattr(frame, "id", None) for frame in frames]
    for order, other in itertools.permutations(orders, 2):
        assert ids.index(order.id) < frames.index(end_of(frames, other.id)), "one waited for the other's end"


def test_a_seed_repeats_among_others(serving):
    seeded = SamplingParams(temperature=1.5, top_p=0.9, seed=3)
    alone, _ = serving.ask("tell me", 10, seeded)
    order = serving.order("tell me", 10, seeded)
    others = [serving.order("x", 20, SamplingParams(temperature=2)) for _ in range(2)]

    serving.send(others[0], order, others[1])
    frames = serving.until_ended(*[one.id for one in (order, *others)])

    assert alone == text_of(frames, order.id)


def test_a_stop_string_ends_the_text_before_it(serving):
    text, _ = serving.ask("tell me", 12)
    stop = text[len(text) // 2 :][:3]

    frames, id_ = serving.hear("tell me", 12, stop=[stop])

    assert text[: text.index(stop)] == text_of(frames, id_)
    assert "stop" == reason_of(frames, id_)


def test_what_was_asked_before_is_not_computed_anew(reusing):
    question = Message(role="user", content="word " * 300)
    cold, first = reusing.ask(prompt=ChatPrompt(messages=[question]), max_tokens=12)

    warm, second = reusing.ask(prompt=ChatPrompt(messages=[question]), max_tokens=12)
    talk = [question, Message(role="assistant", content=cold), Message(role="user", content="and?")]
    _, third = reusing.ask(prompt=ChatPrompt(messages=talk), max_tokens=12)

    assert cold == warm
    assert [0, first.prompt_tokens - 1] == [first.cached_tokens, second.cached_tokens]
    assert third.cached_tokens >= first.prompt_tokens


def test_what_is_kept_is_reported_and_bounded(start, tiny):
    worker = start()
    cap = 200_000
    assert isinstance(worker.load(tiny, prefix_cache_bytes=cap), messages.Loaded)
    assert worker.read().prefix_cache_bytes == 0

    kept = []
    for number in range(4):
        worker.ask(f"{number} word " * 200, 2)
        kept.append(worker.read().prefix_cache_bytes)

    assert 0 < max(kept) <= cap


def test_several_answers_share_their_prompt(serving):
    warm = SamplingParams(temperature=1.5, seed=3)
    frames, id_ = serving.hear("tell me", 8, warm, n=3)

    assert 3 == len({text_of(frames, id_, index) for index in range(3)})
    assert ["length"] * 3 == [reason_of(frames, id_, index) for index in range(3)]
    end = end_of(frames, id_)
    assert (24, end.prompt_tokens) == (end.completion_tokens, serving.ask("tell me", 1)[1].prompt_tokens)


def test_tokens_and_text_are_gone_on_from_as_they_stand(serving, tokenizer):
    tokens = tokenizer.encode("Once upon a time")

    as_text, end = serving.ask(prompt=TextPrompt(text="Once upon a time"))
    as_tokens, _ = serving.ask(prompt=TokenPrompt(tokens=tokens))

    assert as_text == as_tokens != ""
    assert len(tokens) == end.prompt_tokens


def test_a_prompt_can_be_given_back_with_its_scores(serving, tokenizer):
    frames, id_ = serving.hear(prompt=TextPrompt(text="Once upon a time"), max_tokens=2, echo=True, logprobs=2)

    tokens = [token for frame in frames if isinstance(frame, Delta) for token in frame.tokens]
    count = len(tokenizer.encode("Once upon a time"))
    assert text_of(frames, id_).startswith("Once upon a time")
    assert text_of(frames, id_) == "".join(token.text for token in tokens)
    assert [None, *[2] * (count + 1)] == [token.logprob and len(token.top) for token in tokens]
    for token in tokens[1:]:
        assert token.logprob <= token.top[0].logprob < 0


def test_structured_output_beside_free_text(serving):
    alone, _ = serving.ask("tell me", 60)
    free = serving.order("tell me", 60)
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    held = serving.order("tell me", 60, constraint=JsonSchema(schema=schema))

    serving.send(free, held)
    frames = serving.until_ended(free.id, held.id)

    assert alone == text_of(frames, free.id)
    assert "stop" == reason_of(frames, held.id)
    assert json.loads(text_of(frames, held.id))["a"] in (1, 2)


def test_a_request_that_can_never_fit_is_refused_and_disturbs_nobody(start, tiny):
    worker = start()
    assert isinstance(worker.load(tiny), messages.Loaded)
    limit = worker.read().active_bytes + 20 * 2**20
    loaded = worker.load(tiny, memory_limit_bytes=limit, context_length=100_000)
    assert isinstance(loaded, messages.Loaded)

    end = worker.ask("tell me", 99_000)[1]

    assert (ErrorCode.REQUEST_EXCEEDS_MEMORY, "max_tokens") == (end.code, end.param)
    assert isinstance(worker.ask("tell me", 8)[1], Completed)


def test_whoever_comes_too_late_for_the_queue_is_told(start, tiny):
    worker = start()
    assert isinstance(worker.load(tiny, max_waiting=2), messages.Loaded)
    orders = [worker.order("tell me", 20, n=8) for _ in range(8)]
    worker.send(*orders)

    frames = worker.until_ended(*[order.id for order in orders])

    refused = [frame for frame in frames if isinstance(frame, messages.Failed)]
    assert {ErrorCode.QUEUE_FULL} == {frame.code for frame in refused}
    assert 1 <= len(refused) <= 8 - MAX_SEQUENCES // 8 - 2


def test_a_long_prompt_does_not_stop_running_answers(start, tiny):
    worker = start()
    assert isinstance(worker.load(tiny, context_length=8192), messages.Loaded)
    running, long = worker.order("tell me", 2000), worker.order("word " * 6000)
    frames = worker.begin(running)

    worker.send(long)
    frames = worker.until_ended(long.id)

    first = next(at for at, frame in enumerate(frames) if getattr(frame, "id", None) == long.id)
    assert 5 <= sum(getattr(frame, "id", None) == running.id for frame in frames[:first])
    worker.send(messages.Cancel(id=running.id))


def test_an_answer_ends_where_the_context_does(loading, tiny):
    assert isinstance(loading.load(tiny, context_length=64), messages.Loaded)

    for limit in (None, 1000):
        frames, id_ = loading.hear("tell me", limit)

        end = end_of(frames, id_)
        assert "length" == reason_of(frames, id_)
        assert end.prompt_tokens + end.completion_tokens == 64


def test_a_prompt_that_is_too_long_disturbs_nobody(serving):
    alone, _ = serving.ask("tell me", 40)
    neighbour, long = serving.order("tell me", 40), serving.order("word " * 1500)
    frames = serving.begin(neighbour)

    serving.send(long)
    frames += serving.until_ended(neighbour.id, long.id)

    end = end_of(frames, long.id)
    assert (ErrorCode.CONTEXT_LENGTH_EXCEEDED, "messages") == (end.code, end.param)
    assert str(CONTEXT) in end.message
    assert alone == text_of(frames, neighbour.id)


# Cancelling


def test_a_cancelled_request_stops_within_one_step(serving):
    order, neighbour = serving.order("tell me", ENDLESS), serving.order("and me", ENDLESS)
    refused = serving.order("word " * 1500)
    serving.begin(order, neighbour)

    # The refusal is written after the cancel was read; the step under way then is the last that may have the request.
    serving.send(messages.Cancel(id=order.id), refused)
    serving.until_ended(refused.id)
    after = [serving.read() for _ in range(30)]

    assert sum(frame.id == order.id for frame in after) <= 1
    assert sum(frame.id == neighbour.id for frame in after) >= 29
    serving.send(messages.Cancel(id=neighbour.id))


def test_a_cancelled_request_leaves_its_neighbour_alone(serving):
    alone, _ = serving.ask("and me", 30)
    order, neighbour = serving.order("tell me", ENDLESS), serving.order("and me", 30)
    frames = serving.begin(order, neighbour)

    serving.send(messages.Cancel(id=order.id))
    frames += serving.until_ended(neighbour.id)

    assert alone == text_of(frames, neighbour.id)
    assert not [frame for frame in frames if isinstance(frame, ENDS) and frame.id == order.id]


def test_a_request_can_be_cancelled_before_its_prompt_is_made(serving):
    order = serving.order("word " * 1000, ENDLESS)

    serving.send(order, messages.Cancel(id=order.id))

    other = serving.order("hello", 30)
    serving.send(other)
    assert order.id not in {getattr(frame, "id", None) for frame in serving.until_ended(other.id)}


def test_cancelling_what_is_not_there_is_harmless(serving):
    serving.send(messages.Cancel(id=10_000))

    assert isinstance(serving.ask("hello", 3)[1], Completed)


# The end


def test_an_interrupt_from_the_keyboard_is_ignored(serving):
    order = serving.order("tell me", 60)
    frames = serving.begin(order)

    serving.process.send_signal(signal.SIGINT)

    frames += serving.until_ended(order.id)
    assert end_of(frames, order.id).completion_tokens == 60
    assert isinstance(serving.ask("hello", 3)[1], Completed)


def test_the_end_of_the_daemon_ends_it_at_once_in_the_middle_of_answers(start, tiny):
    worker = start()
    worker.load(tiny)
    worker.begin(*[worker.order("tell me", ENDLESS) for _ in range(3)])
    begun = time.monotonic()

    worker.close()

    assert worker.process.wait(SECONDS) == 0
    assert time.monotonic() - begun < PROMPTLY
