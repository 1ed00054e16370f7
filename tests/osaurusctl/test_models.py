"""`ls` and `show`."""

import json
import time

import pytest

from osaurusd.wire.admin import Availability, Route, WorkerState
from osaurusd.wire.lineage import ImportRecord
from osaurusd.wire.placement import PlacementInfo, PlannedRank
from osaurusd.wire.quantization import QuantizationReport, StoredMatrices

DAY = 86400


@pytest.fixture
def models(daemon, fake):
    """Three models: loaded, loading and available with aliases."""
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


def listed_names(result):
    assert result.exit_code == 0
    return [line.split()[0] for line in result.stdout.splitlines()[1:]]


def test_ls_lists_models_and_their_aliases(models, invoke):
    result = invoke("ls")
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "NAME                   TASK      SIZE    PARAMS  QUANT  CONTEXT  STATE      MODIFIED   REPO",
        "gemma                  generate  1.8 GB  135M    4-bit  131072   loading    5h 0m ago  "
        "mlx-community/gemma-4bit",
        "llama-3.2-3b-instruct  generate  1.8 GB  3.2B    4-bit  131072   loaded     3d 0h ago  "
        "mlx-community/llama-3.2-3b-instruct-4bit",
        "qwen                   generate  512 B   -       -      -        available  2d 7h ago  "
        "mlx-community/qwen-4bit",
        "small                  generate  -       -       -      -        available  2d 7h ago  -> qwen",
        "Fast                   generate  -       -       -      -        available  2d 7h ago  -> qwen",
    ]


def test_ls_shows_why_a_model_cannot_be_served(daemon, invoke, fake):
    daemon.models = [
        fake.model("a"),
        fake.model("b", state=Availability.PARTIAL, reason="model-00002.safetensors is missing", aliases=["z"]),
        fake.model("c", state=Availability.UNUSABLE, reason="unknown architecture"),
    ]
    lines = invoke("ls").stdout.splitlines()
    assert lines[0].endswith("REASON")
    assert "available" in lines[1]
    assert "partial" in lines[2]
    assert lines[2].endswith("model-00002.safetensors is missing")
    assert lines[3].endswith("-> b")
    assert "unusable" in lines[4]
    assert lines[4].endswith("unknown architecture")


def test_ls_and_show_tell_which_models_accept_images(daemon, invoke, fake):
    refusal = "images need the extra `vision`"
    daemon.models = [fake.model("a", vision=True), fake.model("b", vision_refusal=refusal)]
    lines = invoke("ls").stdout.splitlines()
    assert lines[1].split()[1:3] == ["generate,", "vision"]
    assert lines[2].endswith(refusal)
    daemon.details["b"] = fake.details("b", {"vision_refusal": refusal})
    assert f"  vision          no: {refusal}" in invoke("show", "b").stdout.splitlines()
    daemon.details["a"] = fake.details("a", {"vision": True}, vision=True)
    assert "  vision          yes" in invoke("show", "a").stdout.splitlines()


def test_ls_json_is_a_list_of_models(daemon, invoke):
    [model] = json.loads(invoke("--json", "ls").stdout)
    assert model["name"] == "llama-3.2-3b-instruct"
    assert model["bytes"] == 1_807_496_278


@pytest.mark.parametrize(
    ("options", "expected"),
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
def test_ls_sorts_models(models, invoke, options, expected):
    result = invoke("ls", "--json", *options)
    assert [model["name"] for model in json.loads(result.stdout)] == expected


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
def test_ls_filters_by_name_repository_alias_and_state(models, invoke, args, names):
    assert listed_names(invoke("ls", *args)) == names


def test_ls_filters_unavailable_models(daemon, invoke, fake):
    daemon.models = [
        fake.model("a", state=Availability.PARTIAL),
        fake.model("b", state=Availability.UNUSABLE),
    ]
    assert listed_names(invoke("ls", "--state", "partial")) == ["a"]
    assert listed_names(invoke("ls", "--state", "unusable")) == ["b"]


def test_ls_reports_that_no_model_matches(daemon, invoke):
    result = invoke("ls", "zebra")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == 'no model matches; run "osaurusctl ls" to list all models\n'
    assert invoke("ls", "zebra", "--json").stdout == "[]\n"


def test_ls_shows_a_modification_time_in_the_future_as_now(daemon, invoke, fake):
    daemon.models = [fake.model("a", created=int(time.time()) + 1000)]
    assert " 0s ago " in invoke("ls").stdout


def test_show_prints_sections(daemon, invoke, fake):
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
        "license       llama3.2",
        "state         available",
        "modified      2d 0h ago",
        "size on disk  1.8 GB",
        "path          /models/llama",
        "",
        "model",
        "  task            generate",
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
        "  required                  2.0 GB",
        "  weights                   1.8 GB",
        "  context, per token        115 kB",
        "  weights and full context  16.8 GB",
        "",
        "worker",
        "  state            ready",
        "  resident memory  2.1 GB",
        "  device           gpu",
        "  pid              4242",
        "  in flight        2",
        "",
        "files",
        "  config.json        1.1 kB",
        "  model.safetensors  1.8 GB",
    ]


def test_show_marks_unknown_values_and_shows_the_reason(daemon, invoke, fake):
    broken = {
        "state": Availability.PARTIAL,
        "reason": "no tokenizer",
        "context_length": None,
        "quantization": None,
    }
    daemon.details["llama"] = fake.details("llama", broken, commit=None, license=None, files=[])
    lines = invoke("show", "llama").stdout.splitlines()
    assert "state         partial: no tokenizer" in lines
    for label in ("commit", "license", "parameters", "temperature", "context length", "context, per token"):
        [line] = [line for line in lines if line.strip().startswith(label)]
        assert line.split()[-1] == "-"
    assert "aliases       none" in lines
    assert "worker" not in lines
    assert "files" not in lines


def test_show_lists_the_hosts_of_a_model_and_its_parts(daemon, invoke, fake):
    ranks = [
        PlannedRank(needs_bytes=12 * 10**9, layers=(40, 79)),
        PlannedRank(needs_bytes=8 * 10**9, host="studio", layers=(0, 39)),
    ]
    placement = PlacementInfo(
        hosts=["studio"], split="auto", chosen="pipeline", reason="pipeline, because it fits", ranks=ranks
    )
    daemon.details["llama"] = fake.details("llama", placement=placement)
    output = invoke("show", "llama").stdout

    rows = [" ".join(line.split()) for line in output.splitlines()]
    assert "hosts this host, studio" in rows
    assert "split auto" in rows
    assert "reason pipeline, because it fits" in rows
    assert "rank 0 this host, 12.0 GB, layers 40 to 79" in rows
    assert "rank 1 studio, 8.0 GB, layers 0 to 39" in rows


def test_show_json_is_the_model_details(daemon, invoke, fake):
    daemon.details["llama"] = fake.details("llama")
    document = json.loads(invoke("show", "llama", "--json").stdout)
    assert document["model"]["name"] == "llama"
    assert document["files"][0] == {"name": "config.json", "bytes": 1100}
    assert daemon.bodies(Route.DETAILS) == [{"model": "llama"}]


def test_show_of_an_unknown_model_exits_with_4(daemon, invoke):
    daemon.missing.add("llama")
    result = invoke("show", "llama")
    assert result.exit_code == 4
    assert result.stderr.startswith("error: no model `llama`\n")


def test_control_characters_of_metadata_do_not_reach_the_terminal(daemon, terminal, fake):
    daemon.details["llama"] = fake.details("llama", license="MIT\x1b]0;title\x07")
    shown, code = terminal("show", "llama").end()
    assert code == 0
    assert "MIT]0;title" in shown
    assert "\x1b" not in shown


def test_show_says_what_an_import_kept_and_what_it_changed(daemon, invoke, fake):
    report = QuantizationReport(
        exact=1,
        converted=32,
        mean_error=0.004,
        worst_error=0.012,
        worst_tensor="output.weight",
        matrices=[
            StoredMatrices(type="Q8_0", count=1, stored="8-bit, group size 32", held=True, error=0.0),
            StoredMatrices(type="Q4_K", count=20, stored="4-bit, group size 32", held=True, error=0.0003),
            StoredMatrices(type="Q6_K", count=12, stored="8-bit, group size 32", error=0.0044),
            StoredMatrices(type="F32", count=2, stored="F16"),
        ],
    )
    record = ImportRecord(
        source="llama3.2:3b",
        program="Ollama",
        format="gguf",
        imported_at=0,
        sha256="ab" * 32,
        quantize="auto",
        quantization=report,
    )
    daemon.details = {"llama": fake.details("llama", imported=record)}
    lines = [line.strip() for line in invoke("show", "llama").stdout.split("imported from", 1)[1].splitlines()]
    rows = [line.split(maxsplit=1) for line in lines[1 : lines.index("", 1)]]
    assert rows[:3] == [["source", "llama3.2:3b"], ["program", "Ollama"], ["sha256", "ab" * 32]]
    assert rows[4:] == [
        ["quantize", "auto"],
        ["Q8_0", "1 matrix, stored as 8-bit, group size 32: exact"],
        ["Q4_K", "20 matrices, stored as 4-bit, group size 32: only scales rounded, mean relative error 0.03%"],
        ["Q6_K", "12 matrices, stored as 8-bit, group size 32: requantized, mean relative error 0.44%"],
        ["F32", "2 matrices, stored as F16"],
        ["largest", "error  1.20% (output.weight)"],
    ]
