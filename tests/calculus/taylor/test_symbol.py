import itertools
import math
from fractions import Fraction

import pytest

from frechet.calculus.taylor._symbol import monomial, powers_of, symbol_of


def expanded(lines, K, variables):
    """Coefficients of the polynomial sum of w <v, xi>^K, by the multinomial theorem in rational numbers."""
    found = {}
    for v, w in lines.items():
        entries = dict(v)
        for index in itertools.product(range(K + 1), repeat=variables):
            if sum(index) != K:
                continue
            c = Fraction(math.factorial(K)) * w
            for j, i in enumerate(index):
                c = c * entries.get(j, 0) ** i / math.factorial(i)
            found[index] = found.get(index, Fraction(0)) + c
    return {index: c for index, c in found.items() if c}


@pytest.mark.parametrize("index", [i for i in itertools.product(range(5), repeat=3) if 0 < sum(i) <= 6])
def test_a_monomial_is_a_sum_of_powers(index):
    sparse = tuple((j, i) for j, i in enumerate(index) if i)
    lines = monomial(sparse)
    assert expanded(lines, sum(index), 3) == {index: 1}
    assert len(lines) <= max(1, (math.prod(i + 1 for i in index) + 1) // 2)


def test_equal_lines_are_one():
    lines = powers_of(symbol_of("u_xxxx + 2*u_xxyy + u_yyyy", "xy"))[4]
    assert set(lines) == {((0, 1),), ((1, 1),), ((0, 1), (1, 1)), ((0, 1), (1, -1))}


@pytest.mark.parametrize(
    ("text", "symbol"),
    [
        ("u", {(): 1.0}),
        ("u_x", {((0, 1),): 1.0}),
        ("-u_xx + 2*u_xy", {((0, 2),): -1.0, ((0, 1), (1, 1)): 2.0}),
        ("u_yx+u_xy", {((0, 1), (1, 1)): 2.0}),
        ("3/2 u_{xxy} - 1e-3*u", {((0, 2), (1, 1)): 1.5, (): -1e-3}),
        (" .5u_y ", {((1, 1),): 0.5}),
        ("w_x - w_x", {((0, 1),): 0.0}),
    ],
)
def test_text_is_read(text, symbol):
    assert symbol_of(text, "xy") == symbol


def test_multi_indices_are_read():
    assert symbol_of({(2, 0, 0): 1, (0, 0, 0): -2.5}, None) == {((0, 2),): 1.0, (): -2.5}


@pytest.mark.parametrize(
    ("operator", "variables", "kind", "told"),
    [
        (3, None, TypeError, "text such as 'u_xx \\+ u_yy'"),
        ("u_xx", None, ValueError, "variables must name the coordinates"),
        ("u_xx", "xx", ValueError, "different single letters"),
        ("u_xz", "xy", ValueError, "has the variable 'z'"),
        ("u*u_x", "x", ValueError, "linear in u"),
        ("u_x^2", "x", ValueError, "cannot read"),
        ("u_x + v_x", "x", ValueError, "of one function, got u and v"),
        ("", "x", ValueError, "of one function, got nothing"),
        ({}, None, ValueError, "at least one term"),
        ({(1, -1): 1.0}, None, ValueError, "integers >= 0"),
        ({(1,): 1.0, (1, 0): 1.0}, None, ValueError, "one length"),
        ({(1,): "a"}, None, TypeError, "finite number"),
        ({(1,): math.nan}, None, TypeError, "finite number"),
    ],
)
def test_wrong_operators(operator, variables, kind, told):
    with pytest.raises(kind, match=told) as error:
        symbol_of(operator, variables)
    assert str(error.value).startswith("differential_operator: ")
