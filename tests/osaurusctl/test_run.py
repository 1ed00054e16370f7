"""`osaurusctl run` with one prompt."""

import json
import re
import signal

import pytest

from osaurusd.wire.admin import Route
from osaurusd.wire.errors import ErrorBody
from tests.images import PNG, data_url

CHAT = "/v1/chat/completions"
IMAGE_FIELD = "messages[0].content[1].image_url.url"
REFUSAL = 'model "llama" does not accept images: it is a text model'
CRASH = ErrorBody(message="the worker crashed", type="server_error", code="worker_crashed")


def test_answer_is_written_to_standard_output(daemon, run):
    result = run("run", "llama", "hello")
    assert (result.returncode, result.stdout, result.stderr) == (0, "Hello there\n", "")
    assert daemon.bodies(CHAT) == [
        {
            "model": "llama",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_answer_with_a_final_newline_gets_no_second_one(daemon, invoke):
    daemon.answers.append(["one\n"])
    assert invoke("run", "llama", "hello").stdout == "one\n"


def test_options_are_sent_to_the_daemon(daemon, invoke):
    options = ["--system", "Be brief.", "--temperature", "0", "--max-tokens", "7", "--seed", "3"]
    assert invoke("run", *options, "llama", "hello").exit_code == 0
    [body] = daemon.bodies(CHAT)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.0, 7, 3)


def test_json_output_is_one_document_with_usage(daemon, run):
    result = run("run", "llama", "hello", "--json")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == {
        "model": "llama",
        "content": "Hello there",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22},
    }


def test_truncated_answer_causes_a_note(daemon, invoke):
    result = invoke("run", "llama", "hello", "--max-tokens", "2")
    assert result.exit_code == 0
    assert "truncated" in result.stderr


def test_standard_input_is_the_prompt(daemon, run):
    assert run("run", "llama", input="from a pipe\n").returncode == 0
    assert daemon.bodies(CHAT)[0]["messages"][-1]["content"] == "from a pipe"


def test_standard_input_is_appended_to_the_prompt(daemon, run):
    assert run("run", "llama", "Sum up:", input="line 1\n\nline 2\n").returncode == 0
    assert daemon.bodies(CHAT)[0]["messages"][-1]["content"] == "Sum up:\n\nline 1\n\nline 2"


@pytest.mark.parametrize("args", [["llama"], ["llama", ""], ["llama", "--json"], []])
def test_missing_prompt_is_a_usage_error(daemon, run, args):
    result = run("run", *args, input="")
    assert result.returncode == 2
    assert "missing prompt" in result.stderr
    assert daemon.requests == []


def test_conversation_with_json_is_a_usage_error(daemon, terminal):
    shown, code = terminal("run", "llama", "--json").end()
    assert code == 2
    assert '"code":"usage"' in shown


def test_default_model_answers_without_a_name(daemon, run):
    daemon.default_model = "qwen"
    assert run("run", input="hello").returncode == 0
    assert daemon.bodies(CHAT)[0]["model"] == "qwen"


@pytest.mark.parametrize("loaded", [False, True])
def test_only_model_answers_without_a_name(daemon, run, fake, loaded):
    if loaded:
        daemon.models += [fake.model("qwen", worker=fake.worker("qwen"))]
    daemon.models += [fake.model("partial", state="partial")]
    assert run("run", "What is this?").returncode == 0
    [body] = daemon.bodies(CHAT)
    assert body["model"] == ("qwen" if loaded else "llama-3.2-3b-instruct")
    assert body["messages"] == [{"role": "user", "content": "What is this?"}]


def test_no_model_at_all_suggests_to_download_one(daemon, run):
    daemon.models = []
    result = run("run", "What is this?")
    assert result.returncode == 4
    assert "osaurusctl pull NAME" in result.stderr


def test_error_without_a_default_model_names_the_key_and_the_file(daemon, run, fake):
    daemon.models += [fake.model("qwen")]
    result = run("run", input="hello")
    assert result.returncode == 2
    assert "`default_model`" in result.stderr
    assert str(daemon.home / "config.toml") in result.stderr


@pytest.mark.parametrize(
    ("code", "exit_code"), [("model_not_found", 4), ("insufficient_memory", 5), ("context_length_exceeded", 1)]
)
def test_error_before_the_answer_has_its_exit_code(daemon, invoke, code, exit_code):
    daemon.fail(CHAT, code, "no")
    result = invoke("run", "llama", "hello")
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr.startswith("error: no\n")


@pytest.mark.parametrize(("code", "exit_code"), [("worker_crashed", 1), ("insufficient_memory", 5)])
def test_error_in_the_stream_has_its_exit_code(daemon, run, code, exit_code):
    daemon.answers.append(["Hel", ErrorBody(message="the worker crashed", type="server_error", code=code)])
    result = run("run", "llama", "hello")
    assert result.returncode == exit_code
    assert result.stdout == "Hel\n"
    assert result.stderr.startswith("error: the worker crashed\n")


def test_error_in_the_stream_is_the_only_json_document(daemon, run):
    daemon.answers.append(["Hel", CRASH])
    result = run("run", "llama", "hello", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["error"]["code"] == "worker_crashed"


@pytest.mark.parametrize("tokens", [["Hel", "CUT"], ["CUT"]])
def test_incomplete_stream_is_an_error(daemon, invoke, tokens):
    daemon.answers.append([daemon.CUT if token == "CUT" else token for token in tokens])
    result = invoke("run", "llama", "hello")
    assert result.exit_code == 1
    assert "invalid reply from osaurusd" in result.stderr


@pytest.mark.parametrize("data", [b"data: nonsense\n\n", b'data: {"choices": 3}\n\n', b"data: {}\n\n"])
def test_malformed_stream_is_an_error(daemon, invoke, data):
    daemon.raw = {CHAT: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)}
    result = invoke("run", "llama", "hello")
    assert result.exit_code == 1
    assert "invalid reply from osaurusd" in result.stderr


def test_ctrl_c_exits_with_130_and_cancels_the_request(daemon, spawn):
    daemon.answers.append(["Hello", daemon.HOLD])
    process = spawn("run", "llama", "hello", stdin=None)
    assert process.stdout.read(5) == b"Hello"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in stderr
    assert b"Traceback" not in stderr
    assert daemon.client_disconnected.wait(60)


def test_ctrl_c_prints_an_error_document_in_json(daemon, spawn):
    daemon.answers.append([daemon.HOLD])
    process = spawn("run", "llama", "hello", "--json")
    process.stdin.close()
    process.stdin = None
    assert daemon.chat_started.wait(60)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(stdout)["error"]["code"] == "interrupted"


def test_closed_pipe_cancels_the_request(daemon, spawn):
    daemon.answers.append(["x" * 1000] * 2000)
    process = spawn("run", "llama", "hello")
    process.stdin.close()
    process.stdin = None
    process.stdout.read(10)
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=60)
    assert stderr == b""


def test_prompt_needs_no_quotes(daemon, run):
    assert run("run", "llama", "why", "is", "the", "sky", "blue?").returncode == 0
    assert daemon.bodies(CHAT)[0]["messages"][-1]["content"] == "why is the sky blue?"


def test_files_precede_the_prompt(daemon, run, home):
    (home / "notes.txt").write_text("remember the milk\n")
    assert run("run", "llama", "Sum up.", "--file", "notes.txt").returncode == 0
    content = daemon.bodies(CHAT)[0]["messages"][-1]["content"]
    assert content == "notes.txt:\n```\nremember the milk\n```\n\nSum up."


def test_image_is_sent_and_a_model_without_vision_is_named(daemon, run, home):
    (home / "cat.png").write_bytes(PNG)
    daemon.fail(CHAT, "image_input_unsupported", f"`{IMAGE_FIELD}`: {REFUSAL}", param=IMAGE_FIELD)
    result = run("run", "llama", "What is this?", "--image", "cat.png")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {REFUSAL}\n")
    image = daemon.bodies(CHAT)[0]["messages"][-1]["content"][1]
    assert image == {"type": "image_url", "image_url": {"url": data_url(PNG)}}


def test_damaged_one_of_several_images_is_named_by_its_number(daemon, run, home):
    for name in ("one.png", "two.png"):
        (home / name).write_bytes(PNG)
    for images, expected in ((["one.png"], "error: damaged"), (["one.png", "two.png"], "error: image 1: damaged")):
        daemon.fail(CHAT, "invalid_request", f"`{IMAGE_FIELD}`: damaged", param=IMAGE_FIELD)
        options = [option for name in images for option in ("--image", name)]
        assert run("run", "llama", "What is this?", *options).stderr.splitlines()[0] == expected


def test_format_is_a_kind_or_a_schema(daemon, run, home):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    (home / "schema.json").write_text(json.dumps(schema))
    for value in ("json", "schema.json"):
        assert run("run", "llama", "hello", "--format", value).returncode == 0
    first, second = (body["response_format"] for body in daemon.bodies(CHAT))
    assert first == {"type": "json_object"}
    assert second == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def test_keep_alive_is_set_when_the_model_is_loaded(daemon, run):
    assert run("run", "llama", "hello", "--keep-alive", "15m").returncode == 0
    assert daemon.bodies(Route.LOAD) == [{"model": "llama", "keep_alive_seconds": 900}]


def test_verbose_shows_counts_and_speed_on_standard_error(daemon, run):
    result = run("run", "llama", "hello", "--verbose")
    assert result.stdout == "Hello there\n"
    assert re.fullmatch(r"prompt 20 tokens, answer 2 tokens, TTFT \d+\.\d\d s, [\d.]+ tok/s\n", result.stderr)
    assert json.loads(run("run", "llama", "hello", "--verbose", "--json").stdout)["speed"]["ttft_seconds"] >= 0


def test_reasoning_is_in_the_json_output_only(daemon, run):
    tokens = [{"reasoning_content": "Let me "}, {"reasoning_content": "think."}, "Yes"]
    daemon.answers.extend([tokens, tokens])
    assert run("run", "llama", "hello").stdout == "Yes\n"
    assert json.loads(run("run", "llama", "hello", "--json").stdout)["reasoning"] == "Let me think."


def test_piped_answer_is_not_rendered(daemon, run):
    daemon.answers.append(["# Title\n\n", "**bold**"])
    assert run("run", "llama", "hello").stdout == "# Title\n\n**bold**\n"
