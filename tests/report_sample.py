"""A report with invented numbers, for the tests of what draws and prints reports. Nothing here was measured."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from frechet.report import _schema as s


def cost(products: int, passes: int, seconds: float, mega: float | None = 42.0, shared: str = "") -> s.Cost:
    return s.Cost(products, passes, seconds, None if mega is None else round(mega * 1e6), shared)


def about(value: float, error: float, spent: s.Cost, method: str = "XTrace", unit: str = "") -> s.Measured:
    return s.Measured(value, value - error, value + error, 0.95, False, spent, method, unit)


def density(eigenvalues: list[float], bulk: float, negative: float, dimension: int, width: float) -> s.Density:
    reach = max(map(abs, eigenvalues))
    positive = np.geomspace(width / 20, 1.1 * reach, 300)
    grid = np.concatenate([-positive[positive < 1.5 * max(abs(min(eigenvalues)), 3 * width)][::-1], [0.0], positive])
    rng = np.random.default_rng(0)
    lam = np.concatenate([rng.gamma(0.15, bulk, 900), -rng.gamma(0.2, negative, 300)])
    kernel = np.exp(-0.5 * ((grid[:, None] - lam) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    value = kernel.mean(1) * (1 - len(eigenvalues) / dimension)
    band = 0.25 * value + 0.02 * value.max() * np.exp(-np.abs(grid) / (8 * width)) * 0.1
    for x in eigenvalues:
        value = value + np.exp(-0.5 * ((grid - x) / width) ** 2) / (width * math.sqrt(2 * math.pi)) / dimension
    spent = cost(800, 800, 9.4)
    columns = (grid, value, np.maximum(value - band, 0), value + band)
    return s.Density(*(tuple(map(float, c)) for c in columns), 0.95, width, 10, 80, 10, spent, "Lanczos quadrature")


def curvature(operator: s.OperatorName, top: list[float], bottom: list[float], dimension: int = 5130) -> s.Curvature:
    krylov = cost(124, 124, 1.62, shared=f"Krylov space of the {operator}")
    own = cost(90, 90, 1.1)
    pairs = s.Eigenvalues(
        tuple(s.Eigenvalue(x, 2e-5 * top[0] * (1 + i), True) for i, x in enumerate(top)),
        tuple(s.Eigenvalue(x, 4e-3 if i == 2 else 3e-4, i != 2) for i, x in enumerate(bottom)),
        krylov,
        "thick-restart Lanczos",
        1e-3,
    )
    trace = 2.2 * sum(top)
    return s.Curvature(
        operator,
        dimension,
        pairs,
        density(top + bottom, 0.06 * top[0], 0.004 * top[0] if bottom else 1e-9, dimension, 0.003 * top[0]),
        about(trace, 0.011 * trace, own, "Hutch++"),
        about(2.1 * top[0], 0.06 * top[0], own, "Hutchinson on the square"),
        about(4.41, 0.26, own, "squared Frobenius norm / squared largest eigenvalue"),
        (
            s.EffectiveDimension(0.01, about(212.0, 9.0, krylov, "Lanczos quadrature")),
            s.EffectiveDimension(1.0, about(9.3, 0.2, krylov, "Lanczos quadrature")),
        ),
    )


def layers() -> s.Layers:
    names = ["0.weight", "0.bias", "3.weight", "3.bias", "blocks.7.attention.projection.query.weight", "7.bias"]
    sizes, shares = [72, 8, 1152, 16, 3872, 10], [0.11, 0.03, 0.34, 0.02, 0.47, 0.03]
    errors = [0.012, 0.004, 0.025, 0.005, 0.03, 0.001]
    spent = cost(160, 160, 2.05)
    rows = tuple(
        s.Layer(
            n,
            k,
            about(62.1 * x, 62.1 * e, spent),
            about(x, e, spent),
            about(60 * x, 90 * e, spent),
            s.Eigenvalue(9.6 * x, 4e-3 * x, i != 3),
        )
        for i, (n, k, x, e) in enumerate(zip(names, sizes, shares, errors, strict=True))
    )
    return s.Layers("gauss_newton", rows, spent, "XTrace and Lanczos on each diagonal block")


def learning_rate() -> s.LearningRate:
    spent = cost(64, 64, 1.3)
    bounds = []
    for size in (1, 4, 16, 64, 256):
        identity, top = 0.62 * size / (size + 24), 0.21 * size / (size + 9)
        bounds.append(
            s.SgdBound(size, about(identity, 0.07 * identity, spent, "trace"), about(top, 0.02 * top, spent, "top"))
        )
    limit = s.Measured(2 / 9.71, 2 / 9.7103, 2 / 9.7097, 1.0, False, cost(124, 124, 1.62, shared="Krylov"), "2 / top")
    caveat = "Both conditions are derived at a minimum that fits every example; elsewhere they are an indication only."
    return s.LearningRate(limit, tuple(bounds), s.Interpolation(0.0712, 0.0154, 0.01, 0.61, 0.987), caveat, spent)


def slices() -> s.Slices:
    def one(direction: str, lam: float, cubic: float) -> s.Slice:
        alpha = np.linspace(-1, 1, 41)
        quadratic = 0.0712 + 0.002 * alpha + 0.5 * lam * alpha**2
        loss = np.maximum(quadratic + cubic * alpha**3 - 0.18 * abs(lam) * alpha**4, 0.01)
        return s.Slice(direction, lam, *(tuple(map(float, x)) for x in (alpha, loss, quadratic)))

    found = (one("largest eigenvalue", 9.71, 0.7), one("second largest", 6.4, -0.5), one("most negative", -0.21, 0.05))
    return s.Slices("hessian", found, cost(0, 123, 0.9))


def header() -> s.Header:
    environment = s.Environment(
        "cpu",
        "float32",
        "0.1.0",
        "2.13.0",
        "3.12.4",
        "Linux x86_64",
        2,
        "1 thread: a product takes 12 ms, with 2 threads 40 ms",
        "default",
    )
    return s.Header(
        "Handwritten digits, convolutional",
        "digits (built in)",
        s.Model("Sequential", 5130, 0, 6),
        "cross_entropy()",
        s.Data(1797, 1797, 8),
        environment,
        0,
        "2026-11-21T10:40:00+00:00",
        "frechet report digits --seed 0",
        "reverse",
        "5 minutes",
        0.0712,
        0.0154,
        ("The model has ReLU kinks: second derivatives are those of the smooth piece around the point.",),
    )


def report() -> s.Report:
    """Every section present."""
    parts = (("Hessian eigenvalues", cost(124, 124, 1.62)), ("Spectral densities", cost(1600, 1600, 18.8)))
    parts += (("Layers", cost(160, 160, 2.05)), ("Learning rate", cost(64, 64, 1.3)), ("Slices", cost(0, 123, 0.9)))
    noise = s.Noise(
        s.Measured(118.0, 92.0, 161.0, 0.95, False, cost(0, 1, 0.4), "jackknife", "examples"),
        about(61.0, 14.0, cost(12, 12, 0.6), "jackknife", "examples"),
        about(2.4e-4, 0.3e-4, cost(0, 1, 0.4)),
        about(0.0283, 0.0009, cost(0, 1, 0.4)),
        1797,
        cost(12, 13, 1.0),
    )
    return s.Report(
        header(),
        curvature("hessian", [9.71, 6.4, 4.9, 3.3, 2.1, 1.2], [-0.21, -0.13, -0.092]),
        curvature("gauss_newton", [9.58, 6.33, 4.7, 3.2, 2.05, 1.18], []),
        layers(),
        learning_rate(),
        noise,
        slices(),
        (s.LeftOut("SGD bounds at batch size 1024", "the data have fewer than twice as many examples"),),
        tuple(s.SectionCost(name, spent) for name, spent in parts),
        cost(1948, 2071, 25.1, 61.0),
    )


def hostile() -> s.Report:
    """Names that would break a page, a figure or a terminal that trusted them."""
    full, bad = report(), '<script>alert("1")</script> & $x^$ [bold]\x1b[31m http://evil.example/a.js'
    assert full.layers is not None
    first = replace(full.layers.layers[0], name=bad)
    return replace(
        full,
        header=replace(
            full.header, title=bad, source=bad, command=bad, remarks=(bad,), model=replace(full.header.model, name=bad)
        ),
        layers=replace(full.layers, layers=(first, *full.layers.layers[1:])),
        left_out=(s.LeftOut(bad, bad),),
    )


def empty() -> s.Report:
    """Nothing measured but the loss; everything left out with a reason."""
    names = ("Hessian", "Gauss-Newton", "Layers", "Learning rate", "Gradient noise", "Slices")
    return s.Report(header(), left_out=tuple(s.LeftOut(n, "the budget of 0 products was spent") for n in names))
