import numpy as np
import torch

from frechet.linalg._eigsh import eigsh
from frechet.linalg._result import Status
from frechet.operators._constructors import from_diagonal, from_matrix
from spectra import rotated


def test_preconditioned_lobpcg_takes_fewer_products():
    d = torch.linspace(1, 1000, 400, dtype=torch.float64) ** 2
    A = from_matrix(torch.diag(d) + 0.1 * rotated(np.linspace(-1, 1, 400)).dense(), facts="symmetric")
    plain = eigsh(A, 3, which="smallest", seed=0, method="lobpcg", max_products=2000)
    good = eigsh(A, 3, which="smallest", seed=0, method="lobpcg", preconditioner=from_diagonal(1 / d))
    assert good.status is Status.CONVERGED
    assert good.products * 4 < plain.products
    assert torch.allclose(good.values, torch.linalg.eigvalsh(A.dense())[:3].flip(0), rtol=1e-5)
