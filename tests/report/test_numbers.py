import math

import pytest

from frechet.report import _numbers as numbers
from frechet.report._schema import Cost, Eigenvalue, Measured

FREE = Cost(0, 0, 0.0)


def m(value, lower, upper, exact=False, unit=""):
    return Measured(value, lower, upper, 0.95, exact, FREE, "m", unit)


@pytest.mark.parametrize(
    ("x", "text"),
    [(0, "0"), (0.012345, "0.0123"), (1234.5, "1230"), (-2.5, "-2.50"), (1.2e-6, "1.20e-6"), (3e9, "3.00e9"),
     (math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan"), (9.999, "10.0")],
)  # fmt: skip
def test_numbers_have_the_digits_asked_for(x, text):
    assert numbers.number(x) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(12.346, 0.4, "12.35 ± 0.40"), (12.345, 0.041, "12.345 ± 0.041"), (-0.02, 0.3, "-0.02 ± 0.30"),
     (5.0, 0.0, "5"), (9.712351, 2e-6, "9.71235 ± 2e-6"), (1.5e-8, 2e-9, "(1.50 ± 0.20)e-8"),
     (0.0, 0.5, "0.00 ± 0.50"), (1.0, math.inf, "1.00 ± inf")],
)  # fmt: skip
def test_an_error_bar_sets_the_digits_of_its_value(value, error, text):
    assert numbers.with_error(value, error) == text


def test_an_error_bar_is_never_rounded_down():
    for error in (0.0101, 0.1234, 0.0999, 3.41e-5, 7.7):
        shown = numbers.with_error(1.0, error).split("±")[1].strip(" )").split("e")[0]
        assert float(shown) >= error or float(shown) * 1e-5 >= error


def test_lopsided_intervals_are_written_by_their_ends_and_symmetric_ones_with_a_bar():
    assert numbers.measured(m(118.0, 92.0, 161.0, unit="examples")) == "118 [92, 161] examples"
    assert numbers.measured(m(10.0, 9.0, 11.0)) == "10.0 ± 1.0"
    assert numbers.measured(m(3.0, 3.0, 3.0, exact=True)) == "3"
    assert numbers.measured(m(2.0, 1.0, math.inf)) == "2.00 [1.0, inf]"
    assert numbers.measured(m(math.inf, 2260.4, math.inf, unit="examples")) == "above 2260 examples"
    assert numbers.measured(m(math.inf, math.inf, math.inf)) == "inf"
    assert numbers.measured(m(math.nan, 0.0, 1.0)) == "no finite value"
    assert numbers.eigenvalue(Eigenvalue(2.0, 0.1, True)) == "2.00 ± 0.10"


def test_shares_never_claim_all_or_nothing():
    assert [numbers.percent(x) for x in (0.0001, 0.9999, 0.5, 0.05, 0.0, 1.0)] == [
        "< 0.1 %", "> 99.9 %", "50.0 %", "5.0 %", "0 %", "100 %",
    ]  # fmt: skip


def test_times_sizes_and_counts_read_as_people_write_them():
    assert [numbers.seconds(t) for t in (0.0032, 1.44, 59.99, 125, 3780)] == [
        "3.2 ms", "1.4 s", "1 min 0 s", "2 min 5 s", "1 h 3 min",
    ]  # fmt: skip
    assert [numbers.size(n) for n in (None, 512, 1500, 310_000_000, 2 * 10**12)] == [
        "unknown", "512 B", "1.5 kB", "310 MB", "2.0 TB",
    ]  # fmt: skip
    assert numbers.plural(1, "pass") == "1 pass"
    assert numbers.plural(1200, "pass") == "1,200 passes"
    assert "shared: x" in numbers.cost(Cost(1, 2, 3.0, 4000, "x"))


def test_typography_is_for_the_eye_only():
    assert numbers.typeset("-1.5e-6, 1e-3, inf, 12,345") == "−1.5×10⁻⁶, 10⁻³, ∞, 12\u202f345"


def test_a_number_of_which_nothing_is_known_is_not_given_as_infinite():
    assert numbers.measured(m(math.inf, 0.0, math.inf, unit="examples")) == "not resolved"
    assert numbers.measured(m(math.inf, 7.0, math.inf, unit="examples")) == "above 7.00 examples"
