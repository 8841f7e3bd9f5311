"""Which conductivity explains noisy temperatures, and how sure is that?

    python examples/conductivity.py

A rod conducts heat with the unknown coefficient k: -k u'' = pi^2 sin(pi x) on [0, 1], u = 0 at the ends; the
temperature is u = sin(pi x) / k. It was measured at 30 places with errors of known size. The temperature is x (1 - x)
times a network, k one more parameter, and both are fitted together: the equation is a condition that holds nearly
exactly, the measurements are data. `least_squares` then gives k with its standard error, as for any fit.

Residuals are left as they are (`mean=False`): those of the data are divided by the size of the errors, those of the
equation by a tolerance that is far smaller than what the data can tell, so that ``absolute_sigma=True`` is true.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from frechet import LeastSquaresSolution, least_squares
from frechet.calculus.taylor import laplacian
from frechet.physics import collocation

F64 = torch.float64
TRUE, NOISE, TOLERANCE = 0.8, 0.02, 1e-2


FTOL = 1e-3  # of the cost, about half the number of data: no step would move k by a fifth of its error


@dataclass(frozen=True)
class Found:
    solution: LeastSquaresSolution
    k: float
    error: float  # the standard error of k


def run(seed: int = 0) -> Found:
    """Fit the network and k to one set of noisy temperatures."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).to(F64)
    with torch.no_grad():
        net[0].weight.uniform_(-3, 3)
        net[0].bias.uniform_(-3, 3)
    places = torch.rand(30, 1, dtype=F64)
    measured = torch.sin(math.pi * places[:, 0]) / TRUE + NOISE * torch.randn(30, dtype=F64)

    def u(p: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        net_parameters = {name: t for name, t in p.items() if name != "k"}
        return lambda x: x[..., 0] * (1 - x[..., 0]) * functional_call(net, net_parameters, (x,)).squeeze(-1)

    def equation(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return (p["k"] * laplacian(u(p))(x) + math.pi**2 * torch.sin(math.pi * x[0])) / TOLERANCE

    def data(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (u(p)(x) - y) / NOISE

    residual = collocation(
        {"equation": equation, "data": data},
        {
            "equation": torch.linspace(0, 1, 30, dtype=F64)[:, None],
            "data": (places, measured),
        },
        mean=False,
    )
    start = {**dict(net.named_parameters()), "k": torch.tensor(2.0, dtype=F64)}
    s = least_squares(residual, start, method="target-ratio", absolute_sigma=True, ftol=FTOL, max_evaluations=1000)
    assert isinstance(s.x, dict)
    assert s.standard_errors is not None, s.message
    return Found(s, float(s.x["k"]), float(s.standard_errors[-1]))


def main() -> None:
    found = run()
    print(f"k = {found.k:.4f} +- {found.error:.4f}, true {TRUE}")
    print(f"{found.solution.method}: {found.solution.message}")


if __name__ == "__main__":
    main()
