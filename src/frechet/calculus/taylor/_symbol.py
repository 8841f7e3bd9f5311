"""Linear differential operators with constant coefficients, and their directions.

An operator is a polynomial in the partial derivatives, its symbol: {multi-index: coefficient}, or text as
"u_xx + 2*u_xy - u_yyyy". Each monomial of order K is a sum of K-th powers of linear forms, and so each derivative a
sum of K-th derivatives along straight lines. With h_j = i_j/2 - nu_j,

    xi^i = 1/K! sum over 0 <= nu <= i of (-1)^|nu| C(i_1, nu_1) ... C(i_n, nu_n) (h_1 xi_1 + ... + h_n xi_n)^K.

Weights are exact rational numbers, and directions that differ by a factor are one.

**Source.** Kan, "From moments of sum to moments of product" (2008), proposition 1. **Differs from** Griewank, Utke and
Walther (2000), whose interpolation takes more directions: 35 instead of 25 for the bi-Laplacian in five dimensions.
**Cost:** (i_1 + 1) ... (i_n + 1)/2 directions for a monomial, 1 for a power of one derivative.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

Sparse = tuple[tuple[int, int], ...]  # (coordinate, whole number) where it is not zero, in order
Symbol = dict[Sparse, float]  # multi-index -> coefficient
Powers = dict[int, dict[Sparse, float]]  # order -> direction -> weight of the derivative along it


def monomial(index: Sparse) -> dict[Sparse, Fraction]:
    """Return directions v and weights w with xi^index = sum of w <v, xi>^K."""
    K = sum(i for _, i in index)
    found: dict[Sparse, Fraction] = {}
    for nu in itertools.product(*(range(i + 1) for _, i in index)):
        doubled = [i - 2 * n for (_, i), n in zip(index, nu, strict=True)]
        weight = Fraction((-1) ** sum(nu), math.factorial(K) * 2**K)
        for (_, i), n in zip(index, nu, strict=True):
            weight *= math.comb(i, n)
        factor = math.gcd(*doubled)
        if factor == 0:
            continue
        if next(h for h in doubled if h) < 0:
            factor = -factor
        direction = tuple((j, h // factor) for (j, _), h in zip(index, doubled, strict=True) if h)
        found[direction] = found.get(direction, Fraction(0)) + weight * factor**K
    return {v: w for v, w in found.items() if w}


def powers_of(symbol: Symbol) -> Powers:
    """Return the operator as derivatives along straight lines: order -> direction -> weight."""
    found: Powers = {}
    for index, c in symbol.items():
        terms = found.setdefault(sum(i for _, i in index), {})
        for v, w in monomial(index).items() if index else [((), Fraction(1))]:
            terms[v] = terms.get(v, 0.0) + c * float(w)
    return {K: {v: w for v, w in terms.items() if w} for K, terms in found.items()}


# --- reading ----------------------------------------------------------------------------------------------------------

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:\s*/\s*\d+)?"
_TERM = re.compile(rf"\s*([+-]?)\s*(?:({_NUMBER})\s*\*?\s*)?([A-Za-z]\w*?)(?:_\{{?([A-Za-z]+)\}}?)?\s*(?=[+-]|$)")


def symbol_of(operator: str | Mapping[Sequence[int], float], variables: str | Sequence[str] | None) -> Symbol:
    """Return the symbol of an operator given as text or as {multi-index: coefficient}."""
    if isinstance(operator, str):
        return _from_text(operator, variables)
    if not isinstance(operator, Mapping):
        raise TypeError(
            "differential_operator: operator must be text such as 'u_xx + u_yy' or a dict of multi-indices, got "
            f"{type(operator).__name__}"
        )
    found: Symbol = {}
    lengths = set()
    for index, c in operator.items():
        if not isinstance(index, tuple) or not all(isinstance(i, int) and i >= 0 for i in index):
            raise ValueError(
                f"differential_operator: a multi-index must be a tuple of integers >= 0, one for each coordinate, "
                f"got {index!r}"
            )
        lengths.add(len(index))
        if len(lengths) > 1:
            raise ValueError(f"differential_operator: multi-indices must have one length, got {sorted(lengths)}")
        sparse = tuple((j, i) for j, i in enumerate(index) if i)
        found[sparse] = found.get(sparse, 0.0) + _coefficient(c)
    if not found:
        raise ValueError("differential_operator: operator must have at least one term, got an empty dict")
    return found


def _coefficient(c: object) -> float:
    if isinstance(c, bool) or not isinstance(c, int | float | Fraction) or not math.isfinite(c):
        raise TypeError(
            f"differential_operator: a coefficient must be a finite number, got {c!r}; ask for several operators, and "
            "combine what they return with coefficients that vary"
        )
    return float(c)


def _from_text(text: str, variables: str | Sequence[str] | None) -> Symbol:
    if variables is None:
        raise ValueError(
            "differential_operator: variables must name the coordinates of x in their order where the operator is "
            "text, "
            "got None; pass variables='xy'"
        )
    names = list(variables)
    if len(set(names)) != len(names) or not all(len(n) == 1 for n in names):
        raise ValueError(f"differential_operator: variables must be different single letters, got {variables!r}")
    found: Symbol = {}
    functions = set()
    position = 0
    while position < len(text.rstrip()):
        term = _TERM.match(text, position)
        if term is None or (position and not term[1]):
            raise ValueError(
                f"differential_operator: cannot read {text[position:].strip()!r} in {text!r}; write a sum of terms "
                f"such as "
                "2*u_xxy, linear in u with constant coefficients"
            )
        functions.add(term[3])
        c = float(Fraction(term[2].replace(" ", ""))) if term[2] and "/" in term[2] else float(term[2] or 1)
        index = _index(term[4] or "", names, text)
        found[index] = found.get(index, 0.0) + (-c if term[1] == "-" else c)
        position = term.end()
    if len(functions) != 1:
        told = "nothing" if not functions else " and ".join(sorted(functions))
        raise ValueError(
            f"differential_operator: the terms of {text!r} must be of one function, got {told}; name it u in all"
        )
    return found


def _index(letters: str, names: list[str], text: str) -> Sparse:
    unknown = sorted(set(letters) - set(names))
    if unknown:
        raise ValueError(
            f"differential_operator: {text!r} has the variable {unknown[0]!r}, which is not among {''.join(names)!r}; "
            "list all coordinates of x in variables"
        )
    return tuple((j, letters.count(n)) for j, n in enumerate(names) if n in letters)


def coordinates(symbols: Iterable[Symbol]) -> int:
    """The least number of coordinates that the operators need."""
    return max((j + 1 for s in symbols for index in s for j, _ in index), default=1)
