"""`ls` and `show`: which models there are, and everything about one."""

import json
import time

import pytest

from osaurusd.wire.admin import ModelState, Route, WorkerState

DAY = 86400


@pytest.fixture
def some(daemon, fake):
    """Models of every sort."""
    now = int(time.time())
    daemon.models = [
        fake.model(
            "qwen",
            quantization=None,
            context_length=None,
            bytes=512,
            created=now - 200_000,
            aliases=["small", "Fast"],
        ),
        fake.model(
            "llama-3.2-3b-instruct",
            parameters=3_212_749_824,
            created=now - 3 * DAY - 60,
            worker=fake.worker("llama-3.2-3b-instruct"),
        ),
        fake.model(
            "gemma",
            parameters=134_515_008,
            created=now - 5 * 3600 - 30,
            worker=fake.worker("gemma", state=WorkerState.STARTING),
        ),
    ]
    return daemon.models


def _names(result):
    assert result.exit_code == 0
    return [line.split()[0] for line in result.stdout.splitlines()[1:]]


def test_ls_lists_models_and_below_each_its_aliases(some, invoke):
    result = invoke("ls")
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "NAME                   SIZE    PARAMS  QUANT  CONTEXT  STATE      MODIFIED   REPO",
        "gemma                  1.8 GB  135M    4-bit  131072   loading    5h 0m ago  mlx-community/gemma-4bit",
        "llama-3.2-3b-instruct  1.8 GB  3.2B    4-bit  131072   loaded     3d 0h ago  "
        "mlx-community/llama-3.2-3b-instruct-4bit",
        "qwen                   512 B   -       -      -        available  2d 7h ago  mlx-community/qwen-4bit",
        "small                  -       -       -      -        available  2d 7h ago  -> qwen",
        "Fast                   -       -       -      -        available  2d 7h ago  -> qwen",
    ]


def test_ls_says_why_a_model_cannot_be_used(daemon, invoke, fake):
    daemon.models = [
        fake.model("a"),
        fake.model("b", state=ModelState.PARTIAL, reason="model-00002.safetensors is missing", aliases=["z"]),
        fake.model("c", state=ModelState.UNUSABLE, reason="unknown architecture"),
    ]
    lines = invoke("ls").stdout.splitlines()
    assert lines[0].endswith("REASON")
    assert "available" in lines[1]
    assert "partial" in lines[2]
    assert lines[2].endswith("model-00002.safetensors is missing")
    assert lines[3].endswith("-> b")
    assert "unusable" in lines[4]
    assert lines[4].endswith("unknown architecture")


def test_ls_json_is_the_list(daemon, invoke):
    [model] = json.loads(invoke("--json", "ls").stdout)
    assert model["name"] == "llama-3.2-3b-instruct"
    assert model["bytes"] == 1_807_496_278


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ([], ["gemma", "llama-3.2-3b-instruct", "qwen"]),
        (["--reverse"], ["qwen", "llama-3.2-3b-instruct", "gemma"]),
        (["--sort", "size"], ["gemma", "llama-3.2-3b-instruct", "qwen"]),
        (["--sort", "size", "--reverse"], ["qwen", "gemma", "llama-3.2-3b-instruct"]),
        (["--sort", "modified"], ["gemma", "qwen", "llama-3.2-3b-instruct"]),
        (["--sort", "parameters"], ["llama-3.2-3b-instruct", "gemma", "qwen"]),
        (["--sort", "parameters", "--reverse"], ["gemma", "llama-3.2-3b-instruct", "qwen"]),
    ],
)
def test_ls_sorts(some, invoke, options, order):
    result = invoke("ls", "--json", *options)
    assert [model["name"] for model in json.loads(result.stdout)] == order


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["LLAMA"], ["llama-3.2-3b-instruct"]),
        (["mlx-community/q"], ["qwen", "small", "Fast"]),
        (["fast"], ["qwen", "small", "Fast"]),
        (["--state", "loaded"], ["gemma", "llama-3.2-3b-instruct"]),
        (["--state", "available", "gem"], ["gemma"]),
    ],
    ids=" ".join,
)
def test_ls_filters(some, invoke, args, names):
    assert _names(invoke("ls", *args)) == names


def test_ls_filters_by_what_is_wrong(daemon, invoke, fake):
    daemon.models = [fake.model("a", state=ModelState.PARTIAL), fake.model("b", state=ModelState.UNUSABLE)]
    assert _names(invoke("ls", "--state", "partial")) == ["a"]
    assert _names(invoke("ls", "--state", "unusable")) == ["b"]


def test_ls_says_that_nothing_matches(daemon, invoke):
    result = invoke("ls", "zebra")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "no model is like that; `osaurusctl ls` lists them all\n"
    assert invoke("ls", "zebra", "--json").stdout == "[]\n"


def test_a_time_in_the_future_is_now(daemon, invoke, fake):
    daemon.models = [fake.model("a", created=int(time.time()) + 1000)]
    assert " 0s ago " in invoke("ls").stdout


def test_show_has_sections(daemon, invoke, fake):
    daemon.details["llama"] = fake.details(
        "llama",
        {
            "architecture": "LlamaForCausalLM",
            "parameters": 3_212_749_824,
            "aliases": ["fast", "small"],
            "created": int(time.time()) - 2 * DAY - 60,
            "worker": fake.worker("llama", in_flight=2),
        },
        tools=True,
        temperature=0.6,
        top_p=0.9,
        kv_bytes_per_token=114_688,
        full_context_bytes=16_839_881_494,
    )
    result = invoke("show", "llama")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "name          llama",
        "aliases       fast",
        "              small",
        "repo          mlx-community/llama-4bit",
        "commit        7f0dc925e0d0afb0322d96f9255cfddf2ba5636e",
        "licence       llama3.2",
        "state         available",
        "modified      2d 0h ago",
        "size on disk  1.8 GB",
        "path          /models/llama",
        "",
        "model",
        "  architecture    LlamaForCausalLM",
        "  quantization    4-bit",
        "  parameters      3.2B",
        "  context length  131072 tokens",
        "  tools           yes",
        "  reasoning       no",
        "  vision          no",
        "",
        "generation defaults",
        "  temperature  0.6",
        "  top_p        0.9",
        "",
        "memory",
        "  weights                   1.8 GB",
        "  a token of context        115 kB",
        "  weights and full context  16.8 GB",
        "",
        "worker",
        "  state      ready",
        "  memory     2.1 GB",
        "  device     gpu",
        "  pid        4242",
        "  in flight  2",
        "",
        "files",
        "  config.json        1.1 kB",
        "  model.safetensors  1.8 GB",
    ]


def test_show_says_what_is_not_known_and_what_is_wrong(daemon, invoke, fake):
    broken = {"state": ModelState.PARTIAL, "reason": "no tokenizer", "context_length": None, "quantization": None}
    daemon.details["llama"] = fake.details("llama", broken, commit=None, licence=None, files=[])
    lines = invoke("show", "llama").stdout.splitlines()
    assert "state         partial: no tokenizer" in lines
    for label in ("commit", "licence", "parameters", "temperature", "context length", "a token of context"):
        [line] = [line for line in lines if line.strip().startswith(label)]
        assert line.split()[-1] == "-"
    assert "aliases       none" in lines
    assert "worker" not in lines
    assert "files" not in lines


def test_show_json_is_the_wire_object(daemon, invoke, fake):
    daemon.details["llama"] = fake.details("llama")
    document = json.loads(invoke("show", "llama", "--json").stdout)
    assert document["model"]["name"] == "llama"
    assert document["files"][0] == {"name": "config.json", "bytes": 1100}
    assert daemon.bodies(Route.DETAILS) == [{"model": "llama"}]


def test_show_of_no_model_is_4(daemon, invoke):
    daemon.missing.add("llama")
    result = invoke("show", "llama")
    assert result.exit_code == 4
    assert result.stderr.startswith("error: no model `llama`\n")


def test_what_a_models_files_say_cannot_command_the_terminal(daemon, terminal, fake):
    daemon.details["llama"] = fake.details("llama", licence="MIT\x1b]0;title\x07")
    shown, code = terminal("show", "llama").end()
    assert code == 0
    assert "MIT]0;title" in shown
    assert "\x1b" not in shown
