"""Small problems whose residuals see one point each, for tests of collocation."""

import itertools
import math

import torch
from torch import nn
from torch.func import functional_call, grad, hessian

from frechet.calculus.taylor import differential_operator, laplacian

F64 = torch.float64


def network(*sizes, seed=0, activation=nn.Tanh):
    torch.manual_seed(seed)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1]).to(F64)


def parameters_of(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def value(net):
    return lambda p: lambda x: functional_call(net, p, (x,)).squeeze(-1)


def square(n, sides, seed=0):
    """Points in the unit square and on its sides."""
    draw = torch.Generator().manual_seed(seed)
    inside, edge = (torch.rand(k, 2, dtype=F64, generator=draw) for k in (n, sides))
    k = torch.arange(sides)
    edge[k, k % 4 // 2] = (k % 2).to(F64)
    return inside, edge


def sine(x):
    return torch.sin(math.pi * x).prod(-1)


def poisson(net):
    """u_xx + u_yy = -2 pi^2 sin sin, u = 0 on the sides."""
    u = value(net)
    return {
        "equation": lambda p, x: laplacian(u(p))(x) + 2 * math.pi**2 * sine(x),
        "boundary": lambda p, x: u(p)(x),
    }


def poisson_by_functions(net):
    """The same by torch.func alone."""
    u = value(net)
    return {
        "equation": lambda p, x: hessian(u(p))(x).diagonal().sum() + 2 * math.pi**2 * sine(x),
        "boundary": lambda p, x: u(p)(x),
    }


def heat(net):
    """u_t = u_xx / 4."""
    u = value(net)
    return {
        "equation": lambda p, x: differential_operator(u(p), "u_t - 0.25*u_xx", variables="tx")(x),
        "start": lambda p, x: u(p)(x) - torch.sin(math.pi * x[1]),
        "sides": lambda p, x: u(p)(x),
    }


def system(net):
    """A first-order system of two functions, and a condition of three numbers a point."""

    def w(p):
        return lambda x: functional_call(net, p, (x,))

    def equation(p, x):
        J = torch.func.jacrev(w(p))(x)
        return torch.stack([J[0, 0] - J[1, 1], J[0, 1] + J[1, 0]])

    return {
        "equation": equation,
        "boundary": lambda p, x: torch.cat([w(p)(x) - x, (w(p)(x) * x).sum()[None]]),
    }


def divergence_form(net):
    """div(a grad u) with a nonlinear a(u), by gradients of gradients."""
    u = value(net)

    def equation(p, x):
        def flux(x):
            return (1 + u(p)(x) ** 2) * grad(u(p))(x)

        return torch.func.jacfwd(flux)(x).diagonal().sum() - 1

    return {"equation": equation, "boundary": lambda p, x: u(p)(x)}
