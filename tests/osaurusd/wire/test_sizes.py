"""Sizes as people read them."""

import pytest

from osaurusd.wire.sizes import format_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_600, "1.0 MB"),
        (1_807_496_278, "1.8 GB"),
        (123_456_789_012, "123 GB"),
        (5_000_000_000_000, "5.0 TB"),
    ],
)
def test_sizes_have_decimal_units_and_few_digits(count, text):
    assert format_bytes(count) == text
