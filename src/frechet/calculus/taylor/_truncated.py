"""Power series in one variable, cut after order K, of elementary functions.

A series is the list of its normalized coefficients, a(h) = a_0 + a_1 h + ... + a_K h^K. None stands for zero, and 1.0
may stand for one. Every function returns the series of f(a(h)). With a = (x, 1, 0, ...) these are the Taylor
coefficients of f at x. All is made of differentiable operations on a_0, so derivatives flow through the coefficients.

**Source.** Griewank and Walther, "Evaluating derivatives" (2008), chapter 13: the recurrences that follow from the
differential equations y' = g(y) a'. **Cost:** O(K^2) elementwise operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Coefficient = Any  # a tensor, a number, or None for zero
Truncated = list[Any]


def variable(x: Tensor, order: int) -> Truncated:
    """Return x + h."""
    return [x, 1.0, *[None] * (order - 1)][: order + 1]


def times(a: Coefficient, b: Coefficient) -> Coefficient:
    if a is None or b is None:
        return None
    if isinstance(a, float) and a == 1.0:
        return b
    if isinstance(b, float) and b == 1.0:
        return a
    return a * b


def plus(a: Coefficient, b: Coefficient) -> Coefficient:
    if a is None:
        return b
    return a if b is None else a + b


def scale(c: float, a: Truncated) -> Truncated:
    return [times(t, c) for t in a]


def add(a: Truncated, b: Truncated) -> Truncated:
    return [plus(s, t) for s, t in zip(a, b, strict=True)]


def shift(a: Truncated, c: float) -> Truncated:
    return [a[0] + c, *a[1:]]


def convolved(a: Truncated, b: Truncated, k: int, first: int = 0) -> Coefficient:
    """Return sum over i >= first of a_i b_{k-i}."""
    total = None
    for i in range(first, k + 1):
        total = plus(total, times(a[i], b[k - i]))
    return total


def mul(a: Truncated, b: Truncated) -> Truncated:
    return [convolved(a, b, k) for k in range(len(a))]


def div(a: Truncated, b: Truncated) -> Truncated:
    y: Truncated = []
    inverse = 1 / b[0]
    for k in range(len(a)):
        rest = convolved(b, [*y, None], k, 1)
        y.append(times(plus(a[k], times(rest, -1.0)), inverse))
    return y


def integral(value: Tensor, g: Truncated, a: Truncated) -> Truncated:
    """Return the series of f(a) with f(a_0) = `value` and f'(a) = g."""
    y: Truncated = [value]
    slopes = [times(a[k], float(k)) for k in range(1, len(a))]
    for k in range(1, len(a)):
        y.append(times(convolved(slopes, g, k - 1), 1.0 / k))
    return y


def solved(value: Tensor, g: Callable[[Truncated, int], Coefficient], a: Truncated) -> Truncated:
    """Return the series of y with y(0) = `value` and y' = G(y) a'; `g(y, m)` is coefficient m of G(y)."""
    y: Truncated = [value]
    slopes = [times(a[k], float(k)) for k in range(1, len(a))]
    rates: Truncated = []
    for k in range(1, len(a)):
        rates.append(g(y, k - 1))
        y.append(times(convolved(slopes, rates, k - 1), 1.0 / k))
    return y


# --- exponentials and powers ------------------------------------------------------------------------------------------


def exp(a: Truncated) -> Truncated:
    return solved(torch.exp(a[0]), lambda y, m: y[m], a)


def expm1(a: Truncated) -> Truncated:
    return [torch.expm1(a[0]), *exp(a)[1:]]


def exp2(a: Truncated) -> Truncated:
    return [torch.exp2(a[0]), *exp(scale(math.log(2), a))[1:]]


def _logarithm(value: Tensor, a: Truncated) -> Truncated:
    return integral(value, div([torch.ones_like(a[0]), *[None] * (len(a) - 1)], a), a)


def log(a: Truncated) -> Truncated:
    return _logarithm(torch.log(a[0]), a)


def log2(a: Truncated) -> Truncated:
    return [torch.log2(a[0]), *scale(1 / math.log(2), log(a))[1:]]


def log10(a: Truncated) -> Truncated:
    return [torch.log10(a[0]), *scale(1 / math.log(10), log(a))[1:]]


def log1p(a: Truncated) -> Truncated:
    return _logarithm(torch.log1p(a[0]), shift(a, 1.0))


def reciprocal(a: Truncated) -> Truncated:
    return div([torch.ones_like(a[0]), *[None] * (len(a) - 1)], a)


def _fractional(value: Tensor, a: Truncated, r: float) -> Truncated:
    """Return a^r from a_0 k y_k = sum over j of (r j - (k - j)) a_j y_{k-j}."""
    y: Truncated = [value]
    inverse = 1 / a[0]
    for k in range(1, len(a)):
        total = None
        for j in range(1, k + 1):
            total = plus(total, times(times(a[j], y[k - j]), (r * j - (k - j)) / k))
        y.append(times(total, inverse))
    return y


def sqrt(a: Truncated) -> Truncated:
    return _fractional(torch.sqrt(a[0]), a, 0.5)


def rsqrt(a: Truncated) -> Truncated:
    return _fractional(torch.rsqrt(a[0]), a, -0.5)


def power_of_variable(x: Tensor, r: float, order: int) -> Truncated:
    """Return (x + h)^r, which at x = 0 is finite as far as the derivative is."""
    y: Truncated = [x**r]
    binomial = 1.0
    for m in range(1, order + 1):
        binomial *= (r - m + 1) / m
        y.append(None if binomial == 0 else binomial * (x ** (r - m) if r != m else torch.ones_like(x)))
    return y


# --- circular and hyperbolic functions --------------------------------------------------------------------------------


def _circular(a: Truncated, s0: Tensor, c0: Tensor, sign: float) -> tuple[Truncated, Truncated]:
    s: Truncated = [s0]
    c: Truncated = [c0]
    slopes = [times(a[k], float(k)) for k in range(1, len(a))]
    for k in range(1, len(a)):
        s_k, c_k = convolved(slopes, c, k - 1), convolved(slopes, s, k - 1)
        s.append(times(s_k, 1.0 / k))
        c.append(times(c_k, sign / k))
    return s, c


def sin(a: Truncated) -> Truncated:
    return _circular(a, torch.sin(a[0]), torch.cos(a[0]), -1.0)[0]


def cos(a: Truncated) -> Truncated:
    return _circular(a, torch.sin(a[0]), torch.cos(a[0]), -1.0)[1]


def sinh(a: Truncated) -> Truncated:
    return _circular(a, torch.sinh(a[0]), torch.cosh(a[0]), 1.0)[0]


def cosh(a: Truncated) -> Truncated:
    return _circular(a, torch.sinh(a[0]), torch.cosh(a[0]), 1.0)[1]


def tan(a: Truncated) -> Truncated:
    return solved(torch.tan(a[0]), lambda y, m: convolved(y, y, m) + (1.0 if m == 0 else 0.0), a)


def tanh(a: Truncated) -> Truncated:
    def rate(y: Truncated, m: int) -> Coefficient:
        return 1 - y[0] * y[0] if m == 0 else -convolved(y, y, m)

    return solved(torch.tanh(a[0]), rate, a)


def sigmoid(a: Truncated) -> Truncated:
    return solved(torch.sigmoid(a[0]), lambda y, m: y[m] - convolved(y, y, m), a)


def _quadratic(a: Truncated, square: float, constant: float) -> Truncated:
    return shift(scale(square, mul(a, a)), constant)


def asin(a: Truncated) -> Truncated:
    return integral(torch.asin(a[0]), rsqrt(_quadratic(a, -1.0, 1.0)), a)


def acos(a: Truncated) -> Truncated:
    return integral(torch.acos(a[0]), scale(-1.0, rsqrt(_quadratic(a, -1.0, 1.0))), a)


def atan(a: Truncated) -> Truncated:
    return integral(torch.atan(a[0]), reciprocal(_quadratic(a, 1.0, 1.0)), a)


def asinh(a: Truncated) -> Truncated:
    return integral(torch.asinh(a[0]), rsqrt(_quadratic(a, 1.0, 1.0)), a)


def acosh(a: Truncated) -> Truncated:
    return integral(torch.acosh(a[0]), rsqrt(_quadratic(a, 1.0, -1.0)), a)


def atanh(a: Truncated) -> Truncated:
    return integral(torch.atanh(a[0]), reciprocal(_quadratic(a, -1.0, 1.0)), a)


# --- error functions and their kin ------------------------------------------------------------------------------------


def _bell(a: Truncated, width: float) -> Truncated:
    """Return exp(-width a^2)."""
    return exp(scale(-width, mul(a, a)))


def erf(a: Truncated) -> Truncated:
    return integral(torch.erf(a[0]), scale(2 / math.sqrt(math.pi), _bell(a, 1.0)), a)


def erfc(a: Truncated) -> Truncated:
    return [torch.erfc(a[0]), *scale(-1.0, erf(a))[1:]]


def erfinv(a: Truncated) -> Truncated:
    def rate(y: Truncated, m: int) -> Coefficient:
        return times(exp(mul(y, y))[m], math.sqrt(math.pi) / 2)

    return solved(torch.erfinv(a[0]), rate, a)


def erfcx(a: Truncated) -> Truncated:
    def rate(y: Truncated, m: int) -> Coefficient:
        slope = times(convolved(a, [*y, *[None] * (len(a) - len(y))], m), 2.0)
        return slope - 2 / math.sqrt(math.pi) if m == 0 else slope

    return solved(torch.special.erfcx(a[0]), rate, a)


def ndtr(a: Truncated) -> Truncated:
    return integral(torch.special.ndtr(a[0]), scale(1 / math.sqrt(2 * math.pi), _bell(a, 0.5)), a)


def ndtri(a: Truncated) -> Truncated:
    def rate(y: Truncated, m: int) -> Coefficient:
        return times(exp(scale(0.5, mul(y, y)))[m], math.sqrt(2 * math.pi))

    return solved(torch.special.ndtri(a[0]), rate, a)


def log_ndtr(a: Truncated) -> Truncated:
    half = scale(-0.5, mul(a, a))

    def rate(y: Truncated, m: int) -> Coefficient:
        return times(exp(add(half[: m + 1], scale(-1.0, y[: m + 1])))[m], 1 / math.sqrt(2 * math.pi))

    return solved(torch.special.log_ndtr(a[0]), rate, a)


# --- activations ------------------------------------------------------------------------------------------------------


def softplus(a: Truncated) -> Truncated:
    return integral(torch.nn.functional.softplus(a[0], threshold=math.inf), sigmoid(a), a)


def log_sigmoid(a: Truncated) -> Truncated:
    return scale(-1.0, softplus(scale(-1.0, a)))


def silu(a: Truncated) -> Truncated:
    return mul(a, sigmoid(a))


def gelu(a: Truncated) -> Truncated:
    return mul(a, ndtr(a))


def gelu_tanh(a: Truncated) -> Truncated:
    cubic = mul(mul(a, a), a)
    inner = scale(math.sqrt(2 / math.pi), add(a, scale(0.044715, cubic)))
    return scale(0.5, mul(a, shift(tanh(inner), 1.0)))


def mish(a: Truncated) -> Truncated:
    return mul(a, tanh(softplus(a)))


def logit(a: Truncated) -> Truncated:
    return add(log(a), scale(-1.0, log(shift(scale(-1.0, a), 1.0))))


def entr(a: Truncated) -> Truncated:
    return scale(-1.0, mul(a, log(a)))


def log_gamma(x: Tensor, order: int) -> Truncated:
    """Return lgamma(x + h)."""
    return [torch.lgamma(x), *[torch.polygamma(m - 1, x) / math.factorial(m) for m in range(1, order + 1)]]


def polygamma(n: int, x: Tensor, order: int) -> Truncated:
    """Return the n-th derivative of digamma at x + h."""
    return [torch.polygamma(n + m, x) / math.factorial(m) for m in range(order + 1)]
