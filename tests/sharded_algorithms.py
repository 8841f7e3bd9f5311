"""Algorithms on the sharded vectors of two ranks for tests/space/test_sharded.py, beside the same on one process."""

import torch

from frechet.analyze import layer_tops, layer_traces
from frechet.linalg import (
    apply_function,
    cg,
    diagonal,
    eigsh,
    frobenius_norm,
    lanczos,
    log_determinant,
    minres,
    spectral_density,
    trace,
)
from frechet.operators import check_operator
from frechet.operators._constructors import identity, restriction
from frechet.operators.derivatives import gauss_newton, hessian
from frechet.space import digest
from group_worker import off


def algorithms(rank, make):
    """Relative errors of what is computed from products alone; vectors up to their sign."""
    ours, single, _ = make(rank, torch.float64)
    found, same = [], []
    for objective in (ours, single):
        H, G, space = hessian(objective), gauss_newton(objective), objective.space
        D, b = G + 0.1 * identity(space), objective.gradient()
        R, solution = restriction(space, "*.weight"), cg(D, b, rtol=1e-12)
        same.append((solution.iterations, solution.status.value, H.shape))
        L = lanczos(H, space.random(1, 0), steps=8)
        spectrum, block = eigsh(H, 3, seed=0, which="both"), eigsh(H, 2, seed=0, method="lobpcg", max_products=200)
        layers = layer_traces(H, seed=0, probes=4)
        d = eigsh(H, 2, seed=0)
        vectors = {
            "lanczos": L.V,
            "eigenvectors": spectrum.vectors,
            "cg": solution.x,
            "minres": minres(D, b, rtol=1e-12).x,
            "function": apply_function(H, b, torch.exp).x,
            "diagonal": diagonal(H, seed=0, products=10).value,
            "xdiag": diagonal(H, seed=0, products=10, method="xdiag").value,
            "exact diagonal": diagonal(H, method="exact").value,
            "submatrix": R.T @ (R @ H @ R.T) @ (R @ b),
            "columns": space.orthonormalize(space.random(range(3), 2, "gaussian"))[0].abs(),
        }
        numbers = {
            "T": L.T,
            "eigsh": spectrum.values,
            "lobpcg": block.values,
            "hutchinson": trace(H, products=9, seed=0, method="hutchinson").value,
            "hutch++": trace(H, products=9, seed=0, method="hutch++").value,
            "xtrace": trace(H, products=12, seed=0, method="xtrace").value,
            "nystrom": trace(G, products=12, seed=0, method="nystrom").value,
            "exact": trace(H, method="exact").value,
            "frobenius": frobenius_norm(H, seed=0, products=9).value,
            "exact frobenius": frobenius_norm(H, method="exact").value,
            "log determinant": log_determinant(D, seed=0, products=60).value,
            "density": spectral_density(H, seed=0, probes=2, steps=8, deflate=d).trace_of(lambda t: t * t).value,
            "dense": H.dense(),
            "layers": torch.stack([t.trace.value for t in layers.blocks]),
            "shares": torch.tensor([t.share for t in layers.modules]),
            "tops": torch.tensor([t.value for t in layer_tops(objective, seed=0, rtol=1e-8).layers]),
            "sphere": space.norm(space.random(0, 0, "sphere"))[None],
        }
        whole = {name: space.whole(v).abs() for name, v in vectors.items()}
        found.append(whole | numbers)
    mine, theirs = found
    return {
        "errors": {name: off(mine[name], theirs[name]) for name in theirs},
        "bits": {name: digest(torch.as_tensor(mine[name])) for name in theirs},
        "law": check_operator(hessian(ours), seed=0) is not None,
        "iterations": same,
    }
