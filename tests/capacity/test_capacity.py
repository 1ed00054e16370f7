"""The capacity model agrees with the documentation and with a simulation of the schedulers."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.capacity.figures import Figures
from tests.capacity.model import KINDS, max_users, predict
from tests.capacity.network import SHAPES, decode_rate, pipeline, tensor
from tests.capacity.report import hosts_needed, kind_table, network_table, speed_table, split_table, user_table
from tests.capacity.simulation import Simulation
from tests.daemons import ctl

EXAMPLE = Path(__file__).parent / "figures" / "example"
PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
MEMORY = 48 * 10**9
CHAT, AGENT, COMPLETION = KINDS


@pytest.fixture(scope="module")
def figures():
    return Figures.load(EXAMPLE.with_suffix(".jsonl"), EXAMPLE.with_suffix(".json"))


def scaled(figures, factor):
    """Return the figures of a host that is faster by a factor."""
    rates = {count: factor * rate for count, rate in figures.decode_rates.items()}
    return replace(figures, decode_rates=rates, prefill_rate=factor * figures.prefill_rate)


def test_documentation_has_the_computed_tables():
    page = PAGE.read_text()
    for table in (kind_table(), split_table(), network_table(), speed_table()):
        assert "\n".join(table) in page


@pytest.mark.parametrize(
    ("kind", "factor", "users"),
    [(CHAT, 1, 110), (CHAT, 9.5, 1000), (AGENT, 1, 15), (COMPLETION, 1, 19)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_prediction_agrees_with_the_simulation(figures, kind, factor, users):
    host = scaled(figures, factor)
    predicted = predict(host, kind, users, MEMORY)
    simulated = Simulation(host, kind, users, MEMORY).run(warm_up=30, seconds=20 if users == 1000 else 200)

    for name in ("requests_per_second", "seconds", "tokens_per_second"):
        assert getattr(predicted, name) == pytest.approx(getattr(simulated, name), rel=0.15), name
    assert simulated.rejected < 0.01


def test_overloaded_host_rejects_requests_in_both(figures):
    predicted = predict(figures, CHAT, 250, MEMORY)
    simulated = Simulation(figures, CHAT, 250, MEMORY).run(warm_up=60, seconds=30)

    assert predicted.requests_per_second == pytest.approx(simulated.requests_per_second, rel=0.15)
    assert min(predicted.rejected, simulated.rejected) > 0.1


def test_table_of_users_says_how_many_hosts_they_need(figures):
    assert "| chat | 132 | 1.7 | 16.0 | 16.8 | 8 |" in user_table(figures, MEMORY, 1000)


def test_faster_host_serves_more_users_and_one_without_memory_none(figures):
    assert max_users(scaled(figures, 2), CHAT, MEMORY) > 1.8 * max_users(figures, CHAT, MEMORY)
    assert max_users(figures, CHAT, figures.weights_bytes) == 0
    assert predict(figures, CHAT, 1, figures.weights_bytes) is None


def test_more_users_are_served_more_slowly(figures):
    loads = [predict(figures, CHAT, users, MEMORY) for users in (1, 20, 60, 120, 240)]
    assert [load.seconds for load in loads] == sorted(load.seconds for load in loads)
    assert [load.requests_per_second for load in loads] == sorted(load.requests_per_second for load in loads)


def test_step_of_a_batch_is_interpolated_and_never_faster_than_a_smaller_one():
    figures = Figures("m", {1: 10.0, 2: 40.0, 4: 20.0}, 100.0, 0, 1)
    assert [figures.step_seconds(count) for count in (1, 2, 3, 4, 6)] == pytest.approx([0.1, 0.1, 0.15, 0.2, 0.3])


def test_tensor_split_exchanges_twice_in_each_layer_and_pipeline_split_once_between_hosts():
    shape = SHAPES[0]
    assert tensor(shape, 2).exchanges == 2 * shape.layers * 2
    assert tensor(shape, 2).bytes_per_token == 2 * shape.layers * shape.hidden * 2
    assert tensor(shape, 4).bytes_per_token == 1.5 * tensor(shape, 2).bytes_per_token
    assert tensor(shape, 2).bytes_per_layer * shape.layers == tensor(shape, 2).bytes_per_token
    assert pipeline(shape, 2).exchanges == 2
    assert pipeline(shape, 3).exchanges == 4
    assert pipeline(shape, 2).bytes_per_token == 2 * shape.hidden * 2


def test_tensor_split_is_faster_only_on_a_network_with_low_latency():
    dense, experts = SHAPES[2], SHAPES[3]
    for shape in (dense, experts):
        alone = 400e9 / shape.bytes_read(4)
        assert decode_rate(shape, 2, "tensor", 400e9, 0) == pytest.approx(2 * alone)
        assert decode_rate(shape, 2, "tensor", 400e9, 15e-6) > alone
        assert decode_rate(shape, 2, "tensor", 400e9, 500e-6) < alone
        assert decode_rate(shape, 2, "pipeline", 400e9, 500e-6) == pytest.approx(alone, rel=0.05)
    assert experts.bytes_read(4) < dense.bytes_read(4) < experts.weights_bytes(4)


def test_tables_of_splits_need_no_measurement(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tests.capacity", "--hosts", "3"])
    runpy.run_module("tests.capacity", run_name="__main__")

    output = capsys.readouterr().out
    assert "\n".join(network_table(3)) in output
    assert "\n".join(speed_table(3)) in output


def test_model_is_split_only_if_it_does_not_fit():
    assert [hosts_needed(11e9, size) for size in (16, 32)] == [1, 1]
    assert [hosts_needed(12e9, size) for size in (16, 32)] == [2, 1]


def test_reports_of_the_commands_are_figures(tiny_daemon, tmp_path):
    reports = [ctl(tiny_daemon.home, "bench", "tiny", "--tokens", "8", "--streams", n, "--json") for n in ("2", "3")]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(json.loads(each.stdout)) + "\n" for each in reports))
    (tmp_path / "model.json").write_text(ctl(tiny_daemon.home, "show", "tiny", "--json").stdout)

    figures = Figures.load(tmp_path / "bench.jsonl", tmp_path / "model.json")

    assert {1, 2, 3} == figures.decode_rates.keys()
    assert figures.kv_bytes_per_token > 0
    assert max_users(figures, COMPLETION, figures.weights_bytes + 10**9) > 0
