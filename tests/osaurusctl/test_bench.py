"""`osaurusctl bench`."""

import json
import signal

import msgspec
import pytest

from osaurusctl import benchmark
from osaurusd.wire.errors import ErrorBody

CHAT = "/v1/chat/completions"
CRASH = ErrorBody(message="the worker crashed", type="server_error", code="worker_crashed")


def measured_requests(daemon):
    """Return the chat requests after the warm-up request."""
    return daemon.bodies(CHAT)[1:]


def measured_prompts(daemon):
    return [body["messages"][0]["content"] for body in measured_requests(daemon)]


def test_json_report_has_every_result(daemon, ctl, fake):
    daemon.workers = [fake.worker("llama", load_seconds=3.5, memory_bytes=2_500_000_000)]
    result = ctl("bench", "llama", "--streams", "2", "--json")
    report = json.loads(result.stdout)

    assert (result.returncode, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    assert ("llama", "gpu", 3.5, 2_500_000_000, 20) == tuple(
        report[key] for key in ("model", "device", "load_seconds", "memory_bytes", "prompt_tokens")
    )
    assert min(report["cold_ttft_seconds"], report["warm_ttft_seconds"], report["prefill_tokens_per_second"]) > 0
    assert [(1, 2), (2, 4)] == [(decode["streams"], decode["tokens"]) for decode in report["decode"]]


def test_text_report_is_a_table(daemon, invoke):
    result = invoke("bench", "llama")
    labels = [line.split("  ")[0] for line in result.stdout.splitlines()]

    assert ["model", "load", "memory", "TTFT, cold", "TTFT, warm", "prefill"] == labels[:6]
    assert ["decode, 1 stream", "decode, 8 streams"] == labels[6:]


def test_report_shows_memory_after_the_measurement(daemon, invoke, fake):
    daemon.workers = [fake.worker("llama", memory_bytes=7_700_000_000)]
    assert "7.7 GB" in invoke("bench", "llama").stdout


def test_report_is_complete_if_the_model_is_unloaded_at_the_end(daemon, invoke):
    daemon.workers = []
    assert "2.1 GB" in invoke("bench", "llama").stdout


def test_cold_prompts_are_new_and_warm_prompts_share_their_prefix(daemon, invoke):
    invoke("bench", "llama", "--prompt-tokens", "40", "--streams", "1")
    cold, warm = measured_prompts(daemon)[0:6:2], measured_prompts(daemon)[1:6:2]
    texts = [prompt.partition(".")[0] for prompt in cold]

    assert 3 == len(set(texts))
    assert [40, 40, 40] == [len(text.split()) for text in texts]
    assert texts == [prompt.partition(".")[0] for prompt in warm]
    assert not set(cold) & set(warm)


def test_concurrent_requests_have_different_prompts(daemon, invoke):
    invoke("bench", "llama", "--streams", "8")
    assert 9 == len(set(measured_prompts(daemon)[6:]))


def test_options_are_sent_to_the_daemon(daemon, invoke):
    invoke("bench", "llama", "--tokens", "77", "--streams", "3")
    decoding = measured_requests(daemon)[6:]

    assert [77] * 4 == [body["max_tokens"] for body in decoding]
    assert {0} == {body["temperature"] for body in decoding}
    assert all(body["stream_options"]["include_usage"] for body in decoding)


def test_single_stream_is_measured_once(daemon, invoke):
    assert 1 == invoke("bench", "llama", "--streams", "1").stdout.count("decode")


def test_streams_run_concurrently_until_ctrl_c(daemon, spawn):
    daemon.answers.extend([["a"]] * 8)
    daemon.answers.extend([[daemon.HOLD]] * 3)
    process = spawn("bench", "llama", "--streams", "3")
    while len(measured_requests(daemon)) < 10:
        assert daemon.client_disconnected.wait(0.01) is False
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert 130 == process.returncode
    assert stderr.endswith(b"interrupted\n")
    assert daemon.client_disconnected.wait(60)


def test_slow_answer_is_stopped_at_the_time_limit(daemon, invoke, monkeypatch):
    monkeypatch.setattr(benchmark, "LIMIT_SECONDS", 0.0)
    daemon.answers.extend([["a"]] * 3)
    daemon.answers.append(["a", daemon.HOLD])
    result = invoke("bench", "llama", "--streams", "1", "--json")

    assert [{"streams": 1, "tokens": 1, "tokens_per_second": None}] == json.loads(result.stdout)["decode"]
    assert daemon.client_disconnected.wait(60)


def reply(content):
    return b"HTTP/1.1 200 OK\r\nOsaurus-Api: 1\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)


def stream(*chunks):
    return reply(b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n")


def test_reasoning_text_counts_as_output(daemon, invoke):
    usage = {"prompt_tokens": 20, "completion_tokens": 1}

    reasoning = {"choices": [{"delta": {"reasoning_content": "Hm"}}]}
    daemon.raw = {CHAT: stream(reasoning, {"choices": [], "usage": usage})}
    assert 0 == invoke("bench", "llama").exit_code


def test_cached_tokens_are_excluded_from_the_prefill_rate(daemon, invoke):
    usage = {"prompt_tokens": 20, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 20}}
    daemon.raw = {CHAT: stream({"choices": [{"delta": {"content": "a"}}]}, {"choices": [], "usage": usage})}
    report = json.loads(invoke("bench", "llama", "--json").stdout)

    assert (20, 0) == (report["cached_tokens"], report["prefill_tokens_per_second"])


def test_stream_without_usage_is_an_error(daemon, invoke):
    daemon.raw = {CHAT: stream({"choices": [{"delta": {"content": "a"}}]})}
    result = invoke("bench", "llama")

    assert 1 == result.exit_code
    assert "`usage`" in result.stderr


def test_empty_answer_is_an_error(daemon, invoke):
    daemon.answers.append([])
    result = invoke("bench", "llama")

    assert 1 == result.exit_code
    assert "llama returned an empty answer" in result.stderr


def test_other_requests_on_the_model_cause_a_warning(daemon, invoke, fake):
    daemon.raw = {"/v0/load": reply(msgspec.json.encode(fake.worker("llama", in_flight=2)))}
    assert "other requests are running" in invoke("bench", "llama").stderr


def test_default_model_is_measured_without_a_name(daemon, invoke):
    daemon.default_model = "qwen"
    assert 0 == invoke("bench").exit_code
    assert {"qwen"} == {body["model"] for body in daemon.bodies(CHAT)}


def test_hint_without_a_default_model_names_the_command(daemon, invoke, fake):
    daemon.models = [fake.model("llama"), fake.model("qwen")]
    result = invoke("bench")

    assert 2 == result.exit_code
    assert "osaurusctl bench NAME" in result.stderr


def test_unknown_model_exits_with_4(daemon, invoke):
    daemon.missing.add("nope")
    assert 4 == invoke("bench", "nope").exit_code


@pytest.mark.parametrize("before", [1, 7, 8], ids=["the first prompt", "one stream", "one of several"])
def test_failure_of_any_request_is_reported(daemon, invoke, before):
    daemon.answers.extend([["a"]] * before)
    daemon.answers.append(["a", CRASH])
    result = invoke("bench", "llama")

    assert 1 == result.exit_code
    assert "error: the worker crashed\n" in result.stderr


@pytest.mark.parametrize("option", [["--tokens", "1"], ["--streams", "0"], ["--prompt-tokens", "0"]])
def test_invalid_option_is_a_usage_error(daemon, invoke, option):
    assert 2 == invoke("bench", "llama", *option).exit_code
