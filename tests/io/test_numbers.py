"""Numbers for people: no digits that say nothing, whatever the value."""

import pytest

from gnfast.io.numbers import fixed, fixed_with_spread, number, with_spread


@pytest.mark.parametrize(
    ("value", "short", "cited"),
    [
        (None, "–", None),
        (0.0, "0", "0.0000"),
        (19.312345, "19.31", "19.3123"),
        (-0.5, "-0.5", "-0.5000"),
        (12345.678, "12,346", "12,346"),
        (1.9123456789e15, "1.912e15", "1.912e15"),
        (-1e99, "-1e99", "-1e99"),
        (1.23456e-7, "1.235e-7", "1.235e-7"),
        (0.00012, "0.00012", "0.00012"),
        (float("nan"), "NaN", "NaN"),
        (float("-inf"), "-∞", "-∞"),
    ],
)
def test_a_number_has_the_digits_that_say_something(value, short, cited):
    assert number(value) == short
    assert value is None or fixed(value) == cited


def test_more_digits_are_those_before_the_point_too():
    assert [number(value, 6) for value in (1000.5, 20_000, 0.000205, 1e15)] == ["1,000.5", "20,000", "0.000205", "1e15"]
    assert [number(value, 3) for value in (999.6, 12.345)] == ["1,000", "12.3"]


def test_a_tiny_deviation_is_none_beside_a_score():
    assert fixed_with_spread(1.0, 8.6e-6) == "1.0000 ± 0.0000" and fixed_with_spread(19.3, 0.5) == "19.3000 ± 0.5000"
    assert fixed_with_spread(2.127e14, 2.35e11) == "2.127e14 ± 2.35e11"


def test_a_mean_has_the_place_of_its_deviation():
    assert with_spread(19.3123, 0.0562) == "19.312 ± 0.056" and with_spread(512.4, 31.2) == "512 ± 31"
    assert with_spread(1.9123456e15, 2.34e14) == "1.912e15 ± 2.3e14"
    assert with_spread(0.5, 1e-12) == "0.5 ± 1e-12" and with_spread(3.0, float("nan")) == "3 ± NaN"
