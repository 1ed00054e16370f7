import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from osaurusd.metrics import Counter, Gauge, Histogram, render


def parsed(*families):
    """Samples as Prometheus' own parser reads them, by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(render(families).decode())
        for sample in family.samples
    }


def test_a_counter_adds_up_by_label_values():
    counter = Counter("a_total", "All of a.", ("model", "how"))
    counter.add(2, "m", "well")
    counter.add(0.5, "m", "well")
    counter.add(1, "n", "badly")

    assert {
        ("a_total", ("how", "well"), ("model", "m")): 2.5,
        ("a_total", ("how", "badly"), ("model", "n")): 1,
    } == parsed(counter)


def test_a_gauge_is_read_when_it_is_asked_for():
    values = [1.0]
    gauge = Gauge("b", "Now.", (), lambda: [((), values[-1])])
    assert {("b",): 1} == parsed(gauge)

    values.append(-2.25)

    assert {("b",): -2.25} == parsed(gauge)


def test_a_histogram_counts_what_is_at_or_below_each_bound():
    histogram = Histogram("c_seconds", "How long.", ("model",), (0.1, 1))
    for value in (0.05, 0.1, 0.5, 1.0, 3.0):
        histogram.observe(value, "m")

    found = parsed(histogram)

    buckets = {key[1][1]: value for key, value in found.items() if key[0] == "c_seconds_bucket"}
    assert {"0.1": 2, "1": 4, "+Inf": 5} == buckets
    assert 5 == found["c_seconds_count", ("model", "m")]
    assert math.isclose(4.65, found["c_seconds_sum", ("model", "m")])


@pytest.mark.parametrize("label", ['with "quotes"', "with \\ and\nlines", "ünï", ""])
def test_any_label_value_survives(label):
    counter = Counter("d_total", 'A "help" \\ with\nlines.', ("model",))
    counter.add(1, label)

    assert {("d_total", ("model", label)): 1} == parsed(counter)


def test_families_without_samples_are_declared():
    (family,) = text_string_to_metric_families(render([Counter("e_total", "Nothing yet.", ("model",))]).decode())

    assert ("e", "counter", "Nothing yet.", []) == (family.name, family.type, family.documentation, family.samples)
