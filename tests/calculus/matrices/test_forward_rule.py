"""Second derivatives by every order of modes; forward mode inside a Function's own rule is lost in torch."""

import itertools

import pytest
import torch

from frechet.calculus.matrices import (
    cholesky,
    eigh,
    expm,
    kronecker_solve,
    logm,
    lyapunov,
    matrix_function,
    polar,
    qr,
    spectral_projector,
    sqrtm,
    svd,
    sylvester,
)

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def sym(A):
    return (A + A.mT) / 2


B, H = randn(3, 3, seed=1), randn(3, 3, seed=2)
START = B @ B.T / 4 + torch.diag(torch.tensor([1.0, 1.5, 2.0], dtype=F64))
MAPS = {
    "expm": expm,
    "expm symmetric": lambda a: expm(sym(a), symmetric=True),
    "logm": logm,
    "sqrtm": lambda a: sqrtm(sym(a)),
    "sin": lambda a: matrix_function(torch.sin, symmetric=False)(a),
    "polar": lambda a: polar(a)[0] + polar(a)[1],
    "projector": lambda a: spectral_projector(sym(a), 1),
    "eigh": lambda a: eigh(sym(a))[1].pow(2) * eigh(sym(a))[0],
    "svd": lambda a: svd(a)[0].pow(2) * svd(a)[1] + svd(a)[2].pow(2),
    "svd tall": lambda a: (svd(a[:, :2])[0].pow(2) * svd(a[:, :2])[1]) @ B[:2],
    "qr": lambda a: qr(a)[0] + qr(a)[1],
    "cholesky": lambda a: cholesky(sym(a)),
    "sylvester": lambda a: sylvester(a, B, a @ B),
    "lyapunov": lambda a: lyapunov(a, a.mT),
    "kronecker": lambda a: kronecker_solve(a, B, B),
}


def forward(g):
    return lambda s: torch.func.jvp(g, (s,), (torch.ones_like(s),))[1]


@pytest.mark.parametrize("name", MAPS)
def test_second_derivatives_do_not_depend_on_the_modes(name):
    def along(t):
        return (MAPS[name](START + 0.1 * t * H) * B).sum()

    found = {}
    for modes in itertools.product((forward, torch.func.grad), repeat=2):
        g = along
        for mode in modes:
            g = mode(g)
        found[modes] = g(torch.tensor(0.3, dtype=F64))
    right = found[torch.func.grad, torch.func.grad]
    assert abs(right) > 1e-6
    for value in found.values():
        torch.testing.assert_close(value, right, rtol=1e-9, atol=1e-12)
    h = 1e-4  # and they are the derivative
    with torch.no_grad():
        low, mid, high = (along(torch.tensor(0.3 + k * h, dtype=F64)) for k in (-1, 0, 1))
    torch.testing.assert_close((high - 2 * mid + low) / h**2, right, rtol=1e-4, atol=1e-5)
