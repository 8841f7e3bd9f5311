"""Predictions of a Laplace approximation: normal outputs of the linearized model, or outputs of drawn parameters.

    linearized    f ~ N(f(x) + J (mean - x), J P^-1 J') for each input, J the Jacobian of its outputs
    sampled       f(x_1), ..., f(x_S) with x_s drawn from the posterior

Probabilities are E softmax(f) or E logistic(f):

    probit        softmax(f_c / sqrt(1 + pi/8 var_c)), within about 0.02 for the logistic function
    mc            the mean over `samples` draws of f
    quadrature    Gauss-Hermite with 64 nodes, exact to rounding for one logistic output with var <= 10

**Source.** D. MacKay (1992), The evidence framework applied to classification networks, Neural Computation 4 (probit);
A. Immer, M. Korzepa, M. Bauer (2021), Improving predictions of Bayesian neural nets via local linearization, arXiv
2008.08400.
**Cost.** Linearized: a gradient for each example and output. Sampled: a forward pass for each draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from frechet.analyze._laplace.example_rows import ExampleRows
from frechet.analyze._laplace.posterior import Posterior, Problem
from frechet.analyze._single_examples import ExampleRoute, by_route
from frechet.errors import NonFinite
from frechet.linalg._shown import Result
from frechet.objective import Batch
from frechet.objective._data import to_device
from frechet.objective._kernels import ordinary_mode
from frechet.objective.criteria._criterion import Elementwise
from frechet.objective.criteria._cross_entropy import CrossEntropy
from frechet.space import generator

How = Literal["linearized", "sampled"]
Link = Literal["probit", "mc", "quadrature"]
NODES = 64


@dataclass(frozen=True, eq=False)
class LaplacePrediction(Result):
    """What the posterior says of a batch of inputs, in float64; the first axis is the examples."""

    outputs: Tensor  # the mean of the model's outputs, shaped like them
    covariance: Tensor = field(repr=False)  # (examples, outputs, outputs), without the observations' noise
    standard_deviation: Tensor  # of each output, shaped like them; with the noise for squared errors
    probabilities: Tensor | None  # shaped like the outputs; None where the likelihood is not of classes
    how: How
    link: Link | None


def predict(
    posterior: Posterior,
    inputs: Any,
    *,
    how: How = "linearized",
    link: Link | None = None,
    samples: int = 100,
    seed: int | None = None,
) -> LaplacePrediction:
    """Return the predictive distribution of a batch of inputs: outputs with covariance, and class probabilities.

    Args:
        posterior: the Laplace approximation.
        inputs: what the model takes: a tensor with the examples on axis 0, or a dict of keyword arguments.
        how: ``"linearized"``, the model of which the posterior is made, or ``"sampled"``. Default: linearized, which
            does not move parameters to where the normal distribution is far from the posterior.
        link: how probabilities follow from outputs: ``"probit"``, ``"mc"``, or ``"quadrature"`` for logistic outputs;
            see the module. Sampled predictions average over the samples. Default: quadrature for logistic outputs,
            probit for softmax.
        samples: how many outputs or parameters are drawn. Default: 100.
        seed: of what is drawn; required where something is.

    Returns:
        A `LaplacePrediction`.

    Raises:
        NonFinite: the model gives NaN or infinity for an example.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import laplace, predict
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> X = torch.tensor([[1.0], [2.0]])
        >>> found = laplace(Objective(model, squared_error(), [(X, X)]), structure="full", mean="newton")
        >>> predict(found, torch.tensor([[0.0], [6.0]])).standard_deviation  # sqrt(noise^2 + x^2 / 6)
        tensor([[1.0000],
                [2.6458]], dtype=torch.float64)
    """
    problem = posterior.problem
    if how not in ("linearized", "sampled"):
        raise ValueError(f"predict: how must be 'linearized' or 'sampled', got {how!r}")
    classes = _classes(problem)
    link = _link(classes, how, link)
    if seed is None and (how == "sampled" or link == "mc"):
        raise ValueError(f"predict: seed must be given with how={how!r}, link={link!r}, which draws")
    if samples < 2:
        raise ValueError(f"predict: samples must be at least 2, got {samples}")
    batch = Batch(to_device(inputs, problem.space.device, problem.part.dtype), None, 0)
    if how == "sampled":
        drawn = _drawn_outputs(posterior, batch, samples, seed or 0)
        flat = (drawn - drawn.mean(0)).flatten(2)
        covariance = torch.einsum("smi,smj->mij", flat, flat) / (samples - 1)
        mean, shares = drawn.mean(0), None if classes is None else classes.of(drawn, leading=1).mean(0)
    else:
        mean, covariance = by_route("predict", None, problem.objective, lambda way: _linearized(posterior, batch, way))
        shares = None if classes is None else _shares(classes, mean, covariance, link, samples, seed)
    variance = covariance.diagonal(dim1=1, dim2=2).reshape(mean.shape)
    noise = 0.0 if posterior.noise is None else posterior.noise**2
    return LaplacePrediction(mean, covariance, (variance + noise).sqrt(), shares, how, link)


def draw(posterior: Posterior, samples: int, *, seed: int) -> Tensor:
    """Draw parameters from the posterior, as columns ``(n, samples)`` in float64.

    Args:
        posterior: the Laplace approximation.
        samples: how many.
        seed: of the draws. Column j depends on the seed and on j alone.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import draw, laplace
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> X = torch.tensor([[1.0], [2.0]])
        >>> found = laplace(Objective(model, squared_error(), [(X, X)]), structure="full", mean="newton")
        >>> draw(found, 3, seed=0).shape
        torch.Size([1, 3])
    """
    space = posterior.problem.curvature.domain
    s = 1.0 if posterior.noise is None else 1 / (2 * posterior.noise**2)
    R = posterior.problem.curvature.root(s, posterior.prior_precision)
    return posterior.mean[:, None] + R @ space.random(range(samples), seed, "gaussian")


# --- outputs ----------------------------------------------------------------------------------------------------------


def _linearized(posterior: Posterior, batch: Batch, route: ExampleRoute) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the outputs."""
    p = posterior.problem
    covariances = []
    with p.snapshot.running(), ordinary_mode(p.space.device), torch.no_grad():
        rows = ExampleRows.of("predict", p.snapshot, p.space, route)
        with p.snapshot.installed(rows.blocks):
            found = rows.on(batch)
            mean = _finite(found.y).double()
            for a, b, J in found.jacobians():
                m, c, n = J.shape
                flat = J.double().view(m * c, n).T
                moved = (posterior.covariance @ flat).T.reshape(m, c, n)
                covariances.append(torch.einsum("mcn,mdn->mcd", J.double(), moved))
                if posterior.about == "newton":
                    step = (flat.T @ (posterior.mean - p.point)).view(mean[a:b].shape)
                    mean[a:b] += step
    C = torch.cat(covariances)
    return mean, (C + C.transpose(1, 2)) / 2


def _drawn_outputs(posterior: Posterior, batch: Batch, samples: int, seed: int) -> Tensor:
    """The outputs ``(samples, ...)`` of drawn parameters."""
    p = posterior.problem
    found = []
    with p.snapshot.running(), ordinary_mode(p.space.device), torch.no_grad():
        _, blocks = p.snapshot.leaves(p.space)
        for x in draw(posterior, samples, seed=seed).T:
            moved = {**blocks, **p.space.unflatten(x.to(p.space.dtype))}
            with p.snapshot.installed(moved):
                found.append(_finite(p.snapshot.forward(moved, batch)).double())
    return torch.stack(found)


def _finite(y: Tensor) -> Tensor:
    if not y.numel():
        raise ValueError(f"predict: inputs must hold at least one example, got outputs of shape {tuple(y.shape)}")
    if not bool(torch.isfinite(y).all()):
        row = int((~torch.isfinite(y)).flatten(1).any(1).nonzero()[0])
        raise NonFinite(f"predict: the model must give finite outputs, got NaN or infinity for example {row}")
    return y


# --- probabilities ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classes:
    """How outputs become probabilities: by a softmax over an axis of them, or each by the logistic function."""

    axis: int | None  # None: logistic

    def of(self, f: Tensor, leading: int = 0) -> Tensor:
        """The probabilities of outputs behind `leading` further axes."""
        if self.axis is None:
            return f.sigmoid()
        return f.softmax(self.axis + leading if self.axis >= 0 else self.axis)


def _classes(problem: Problem) -> Classes | None:
    """None where the likelihood is not of classes."""
    criterion = problem.part.criterion
    if isinstance(criterion, CrossEntropy):
        return Classes(criterion.class_dim)
    return Classes(None) if isinstance(criterion, Elementwise) and criterion.name == "binary_cross_entropy" else None


def _link(classes: Classes | None, how: How, link: Link | None) -> Link | None:
    """The link that is used; None where there is nothing to choose."""
    if link not in (None, "probit", "mc", "quadrature"):
        raise ValueError(f"predict: link must be 'probit', 'mc' or 'quadrature', got {link!r}")
    if classes is None or how == "sampled":
        if link is not None:
            why = "the likelihood has no classes" if classes is None else "sampled predictions average over the samples"
            raise ValueError(f"predict: link must be left out, got {link!r}: {why}")
        return None
    if link == "quadrature" and classes.axis is not None:
        raise ValueError("predict: link='quadrature' serves logistic outputs alone; use 'probit', or 'mc' with seed=")
    return link or ("quadrature" if classes.axis is None else "probit")


def _shares(classes: Classes, mean: Tensor, C: Tensor, link: Link | None, samples: int, seed: int | None) -> Tensor:
    """The expected probabilities of normal outputs."""
    variance = C.diagonal(dim1=1, dim2=2).reshape(mean.shape).clamp_min(0)
    if link == "probit":
        return classes.of(mean / (1 + math.pi / 8 * variance).sqrt())
    if link == "quadrature":
        nodes, weights = (torch.from_numpy(a).to(mean) for a in np.polynomial.hermite.hermgauss(NODES))
        f = mean.unsqueeze(-1) + (2 * variance).sqrt().unsqueeze(-1) * nodes
        return (f.sigmoid() * weights).sum(-1) / math.sqrt(math.pi)
    values, vectors = torch.linalg.eigh(C)
    root = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
    z = torch.randn(samples, *mean.shape[:1], C.shape[1], generator=generator(seed or 0), dtype=torch.float64)
    f = mean + torch.einsum("mij,smj->smi", root, z.to(mean)).reshape(samples, *mean.shape)
    return classes.of(f, leading=1).mean(0)
