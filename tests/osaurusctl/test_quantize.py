"""`osaurusctl quantize`: requests, progress, errors and Ctrl-C."""

import json
import signal

import pytest

from osaurusd.wire.admin import ImportErrorEvent, ImportProgress
from osaurusd.wire.errors import ErrorBody
from osaurusd.wire.imports import ImportNote, ImportRoute, QuantizeDone
from osaurusd.wire.lineage import Lineage

STEPS = [
    ImportProgress(stage="load", done=0, total=0),
    ImportNote(text="the image encoder is not taken"),
    ImportProgress(stage="quantize", done=2_000_000, total=2_000_000),
]
LINEAGE = Lineage(
    base="org/base",
    mode="affine",
    bits=4,
    group_size=64,
    bits_per_weight=4.5,
    mean_error=0.071,
    worst_error=0.093,
    worst_tensor="lm_head.weight",
    quantized=30,
    kept=1,
)


@pytest.fixture
def done(fake):
    return QuantizeDone(model=fake.model("base-4bit"), base_bytes=7_000_000_000, lineage=LINEAGE)


def test_sizes_and_errors_are_shown(daemon, ctl, done):
    daemon.import_events = [*STEPS, done]
    result = ctl("quantize", "base", "--bits", "4")
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        "base-4bit created: 7.0 GB to 1.8 GB, 4.50 bits per weight",
        "mean relative error 7.10%, largest 9.30% (lm_head.weight)",
    ]
    assert result.stderr == "load\nthe image encoder is not taken\nquantize (2.0 MB)\n"


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (("--bits", "8"), {"mode": "affine", "bits": 8, "group_size": None, "name": None, "requantize": False}),
        (("--bits", "5", "--group-size", "32"), {"mode": "affine", "bits": 5, "group_size": 32}),
        (("--bits", "mxfp4", "--name", "x", "--requantize"), {"mode": "mxfp4", "bits": None, "name": "x"}),
    ],
)
def test_options_become_the_request(daemon, invoke, done, arguments, fields):
    daemon.import_events = [done]
    assert invoke("quantize", "base", *arguments).exit_code == 0
    (body,) = daemon.bodies(ImportRoute.QUANTIZATIONS)
    assert body["model"] == "base"
    assert fields.items() <= body.items()


def test_json_output_has_one_line_per_event(daemon, invoke, done):
    daemon.import_events = [*STEPS, done]
    events = [json.loads(line) for line in invoke("quantize", "base", "--bits", "4", "--json").stdout.splitlines()]
    assert [event["event"] for event in events] == ["progress", "note", "progress", "done"]
    assert events[-1]["lineage"]["mean_error"] == 0.071


def test_refusal_is_one_line(daemon, invoke):
    error = ErrorBody(message='model "base" cannot be quantized: why', type="x", code="quantization_failed")
    daemon.import_events = [STEPS[0], ImportErrorEvent(error=error)]
    result = invoke("quantize", "base", "--bits", "4")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == 'error: model "base" cannot be quantized: why'


def test_unknown_model_exits_with_its_own_code(daemon, invoke):
    daemon.fail(ImportRoute.QUANTIZATIONS, "model_not_found", 'model "absent" does not exist', status=404)
    assert invoke("quantize", "absent", "--bits", "4").exit_code == 4


@pytest.mark.parametrize("arguments", [(), ("--bits", "7"), ("--bits", "4", "--group-size", "16"), ("--bits",)])
def test_incomplete_arguments_are_usage_errors(daemon, invoke, arguments):
    assert invoke("quantize", "base", *arguments).exit_code == 2


def test_ctrl_c_cancels(daemon, spawn):
    daemon.import_events = [STEPS[0], daemon.HOLD]
    process = spawn("quantize", "base", "--bits", "4")
    assert process.stderr.readline() == b"load\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "partial files were removed" in stderr.decode()
    assert daemon.client_disconnected.wait(60)


def test_show_names_the_original(daemon, invoke, fake):
    daemon.details = {"base-4bit": fake.details("base-4bit", lineage=LINEAGE)}
    text = invoke("show", "base-4bit").stdout
    assert "quantized from" in text
    assert "org/base" in text
    assert "affine, 4 bits, group size 64" in text
    assert "9.30% (lm_head.weight)" in text
