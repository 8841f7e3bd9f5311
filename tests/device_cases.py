"""What must give the same numbers on every device: products of all cases, and the algorithms on small problems."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import module_cases
import objective_cases
from frechet import (
    LinearOperator,
    Objective,
    diagonal,
    eigsh,
    empirical_fisher,
    fisher,
    from_callable,
    from_matrix,
    gauss_newton,
    hessian,
    implicit,
    jacobian,
    least_squares,
    linearize,
    log_determinant,
    minimize,
    ntk,
    root,
    sinkhorn,
    solve,
    spectral_density,
    svds,
    trace,
)
from frechet.calculus import root_conditions
from frechet.compress import compensated, removed_in_order
from frechet.linalg import (
    apply_function,
    arnoldi,
    cg,
    frobenius_norm,
    gmres,
    golub_kahan,
    hadamard_sketch,
    jacobi,
    lanczos,
    lsmr,
    minres,
    nystrom,
    pivoted_cholesky,
    sparse_sign_sketch,
)
from frechet.operators import inverse_fisher, submatrix
from frechet.optimize import Constraint, fixed_point, least_squares_batch, prox_linear, studies
from frechet.space import euclidean
from frechet.train import MFAC
from frechet.transport import monge_gap, sparse_transport, transport_plan, transport_value

F64 = torch.float64
MAKERS = (*objective_cases.MAKERS, *module_cases.MODULES)
DERIVATIVES: dict[str, Callable[[Objective], LinearOperator]] = {
    "hessian": hessian,
    "hessian, forward": lambda o: hessian(o, route="forward"),
    "gauss_newton": gauss_newton,
    "fisher": fisher,
    "fisher, drawn": lambda o: fisher(o, seed=0),
    "empirical_fisher": lambda o: empirical_fisher(o, per="example"),
    "jacobian": jacobian,
    "ntk": ntk,
    "kept hessian": lambda o: linearize(hessian(o)),
    "recorded hessian": lambda o: linearize(hessian(o), 0),
    "recorded jacobian": lambda o: linearize(jacobian(o), 0),
    "kept jacobian": lambda o: linearize(jacobian(o)),
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


N = 30
M, B = randn(N, N), randn(N, seed=1)
S = M @ M.T / N + 0.1 * torch.eye(N, dtype=F64)
COST, POINTS = randn(12, 10, seed=2).abs(), randn(12, 2, seed=3)
TIMES = torch.linspace(0, 3, 20, dtype=F64)
DECAY = 2 * torch.exp(-0.7 * TIMES) + 0.3


def definite(d: str) -> LinearOperator:
    matrix = S.to(d)
    return from_callable(lambda V: matrix @ V, euclidean(N, dtype=F64, device=d), facts="positive_definite")


def indefinite(d: str) -> LinearOperator:
    matrix = (M + M.T).to(d)
    return from_callable(lambda V: matrix @ V, euclidean(N, dtype=F64, device=d), facts="symmetric")


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def ball(least: float) -> Constraint:
    return Constraint(lambda x: x.square().sum()[None], least, 1.0)


def start(d: str) -> Tensor:
    return torch.full((6,), -1.2, dtype=F64).to(d)


def decay(d: str) -> Callable[[Tensor], Tensor]:
    t, y = TIMES.to(d), DECAY.to(d)
    return lambda x: x[0] * torch.exp(-x[1] * t) + x[2] - y


def ones(n: int, d: str) -> Tensor:
    return torch.ones(n, dtype=F64).to(d)


def by_name(d: str) -> Any:
    t, y = TIMES.to(d), DECAY.to(d)
    return least_squares(
        lambda p: p["size"] * torch.exp(-p["rate"] * t) + p["rest"] - y,
        {"size": ones(1, d), "rate": ones(1, d), "rest": ones(1, d)},
        bounds=({"rate": 0.0}, {"size": 1.5}),
    )


def structured(d: str, **options: Any) -> Any:
    which, t = (torch.arange(20) % 4).to(d), TIMES.to(d)
    y = (1 + 0.1 * torch.arange(20) % 4).to(d) * torch.exp(-0.7 * t)
    return least_squares(
        lambda p: p["size"][which, 0] * torch.exp(-p["rate"] * t) - y,
        {"size": ones(4, d)[:, None], "rate": ones(1, d)[0]},
        structure={"size": which, "rate": "all"},
        **options,
    )


def batch(d: str) -> Any:
    t = TIMES.to(d)
    several = torch.stack([DECAY, DECAY + 0.1]).to(d)
    return least_squares_batch(lambda x, y: x[0] * torch.exp(-x[1] * t) + x[2] - y, ones(3, d), several).x


def window(d: str) -> LinearOperator:
    return inverse_fisher(M[:8].to(d), 0.1).removed(2).added(M[9].to(d))


def trained(d: str) -> Tensor:
    weight = torch.nn.Parameter(B.clone().to(d))
    optimizer = MFAC([weight], lr=0.1, window=3)
    for _ in range(5):
        optimizer.zero_grad()
        (weight @ S.to(d) @ weight).backward()
        optimizer.step()
    return weight.detach()


def slope_of_root(d: str) -> Any:
    theta = torch.tensor([2.0, 3.0], dtype=F64).to(d).requires_grad_()
    solver = implicit(lambda c: root(lambda x: x**3 - c, ones(2, d)).x, root_conditions(lambda x, c: x**3 - c))
    return torch.autograd.grad(solver(theta).sum(), theta)


def slope_of_transport(transport: Callable[..., Tensor]) -> Callable[[str], Any]:
    def slope(d: str) -> Any:
        cost = COST.to(d).requires_grad_()
        return torch.autograd.grad(transport(cost, epsilon=0.05).square().sum(), cost)

    return slope


ALGORITHMS: dict[str, Callable[[str], Any]] = {
    "lanczos": lambda d: lanczos(indefinite(d), B.to(d), steps=10),
    "arnoldi": lambda d: arnoldi(indefinite(d), B.to(d), steps=10),
    "golub_kahan": lambda d: golub_kahan(from_matrix(M.to(d)), B.to(d), steps=10),
    "eigsh": lambda d: eigsh(indefinite(d), 3, which="both", seed=0),
    "eigsh, lobpcg": lambda d: eigsh(definite(d), 3, which="largest", seed=0, method="lobpcg").values,
    "eigsh, on the host": lambda d: eigsh(indefinite(d), 3, which="largest", seed=0, storage="host").values,
    "eigsh, float16": lambda d: eigsh(indefinite(d), 3, which="largest", seed=0, rtol=1e-2, storage="float16").values,
    "svds": lambda d: svds(from_matrix(M.to(d)), 3, seed=0),
    "hutchinson": lambda d: trace(definite(d), seed=0, products=20, method="hutchinson"),
    "hutch++": lambda d: trace(definite(d), seed=0, products=20, method="hutch++"),
    "xtrace": lambda d: trace(definite(d), seed=0, products=20, method="xtrace"),
    "xnystrace": lambda d: trace(definite(d), seed=0, products=20, method="nystrom"),
    "trace to a tolerance": lambda d: trace(definite(d), seed=0, products=25, rtol=0.1),
    "diagonal": lambda d: diagonal(definite(d), seed=0, products=20),
    "frobenius_norm": lambda d: frobenius_norm(definite(d), seed=0, products=20),
    "spectral_density": lambda d: spectral_density(definite(d), seed=0, probes=8, steps=10),
    "log_determinant": lambda d: log_determinant(definite(d), seed=0, products=29, steps=10),
    "apply_function": lambda d: apply_function(definite(d), B.to(d), torch.sqrt),
    "sparse_sign_sketch": lambda d: sparse_sign_sketch(euclidean(N, dtype=F64, device=d), 12, seed=0) @ B.to(d),
    "hadamard_sketch": lambda d: hadamard_sketch(euclidean(N, dtype=F64, device=d), 12, seed=0) @ B.to(d),
    "jacobi": lambda d: jacobi(S.diagonal().to(d)) @ B.to(d),
    "nystrom": lambda d: nystrom(definite(d), rank=8, damping=0.1, seed=0) @ B.to(d),
    "pivoted_cholesky": lambda d: (
        pivoted_cholesky(from_matrix(S.to(d), facts="positive_definite"), rank=8, damping=0.1) @ B.to(d)
    ),
    "inverse_fisher": lambda d: window(d) @ B.to(d),
    "inverse_fisher in blocks": lambda d: inverse_fisher(M[:8].to(d), 0.1, block=7) @ B.to(d),
    "diagonal of inverse_fisher": lambda d: diagonal(window(d)),
    "submatrix": lambda d: submatrix(window(d), [3, 20, 7]),
    "compensated": lambda d: compensated(B.to(d), window(d), [3, 20, 7]),
    "compensated by products": lambda d: compensated(B.to(d), definite(d), [3, 20, 7], gradient=M[0].to(d)),
    "removed_in_order": lambda d: removed_in_order(B.to(d), window(d), 5),
    "MFAC": trained,
    "cg": lambda d: cg(definite(d), B.to(d)),
    "minres": lambda d: minres(indefinite(d), B.to(d)),
    "gmres": lambda d: gmres(definite(d), B.to(d)),
    "lsmr": lambda d: lsmr(definite(d), B.to(d)),
    "solve": lambda d: solve(definite(d), torch.stack([B, 2 * B], 1).to(d), rtol=1e-12).x,
    "trust-region": lambda d: minimize(rosenbrock, start(d), method="trust-region"),
    "gradient-regularized": lambda d: minimize(rosenbrock, start(d), method="gradient-regularized"),
    "stepsized": lambda d: studies.stepsized_newton(rosenbrock, start(d)),
    "cubic": lambda d: studies.cubic_newton(rosenbrock, start(d)),
    "projected-newton": lambda d: minimize(rosenbrock, start(d), bounds=(-2.0, 0.8)),
    "composite": lambda d: minimize(rosenbrock, start(d), method="composite", constraints=ball(1.0)),
    "augmented": lambda d: minimize(rosenbrock, start(d), method="augmented", constraints=ball(1.0)),
    "composite with sides": lambda d: minimize(rosenbrock, start(d), bounds=(-0.5, 2.0), constraints=ball(0.0)).x,
    "least_squares": lambda d: least_squares(decay(d), ones(3, d)),
    "least_squares, bounds, by name": by_name,
    "least_squares, interior": lambda d: least_squares(decay(d), ones(3, d), bounds=(0.0, 1.5), method="interior").x,
    "least_squares, robust": lambda d: least_squares(decay(d), ones(3, d), loss="huber").x,
    "least_squares, products": lambda d: least_squares(decay(d), ones(3, d), jacobian="products").x,
    "least_squares, structure": structured,
    "least_squares, structure, products": lambda d: structured(d, jacobian="products"),
    "least_squares, structure, differences": lambda d: structured(d, jacobian="3-point"),
    "least_squares, gathered rows": lambda d: least_squares(
        lambda x: x[torch.arange(4, device=d)] ** 2 - 2, ones(4, d), structure=torch.arange(4, device=d)
    ),
    "least_squares_batch": batch,
    "root": lambda d: root(lambda x: x**3 + S.to(d) @ x - B.to(d), 0 * ones(N, d)).x,
    "fixed_point": lambda d: fixed_point(torch.cos, ones(4, d)).x,
    "sinkhorn": lambda d: sinkhorn(COST.to(d), epsilon=0.05).plan,
    "sparse_transport": lambda d: sparse_transport(COST.to(d), cardinality=3, gamma=0.05).plan,
    "slope of transport_value": slope_of_transport(transport_value),
    "slope of transport_plan": slope_of_transport(transport_plan),
    "monge_gap": lambda d: monge_gap(POINTS.to(d), (POINTS + 1).to(d), epsilon=0.05),
    "prox_linear": lambda d: prox_linear("l1", lambda x: M.to(d)[:, :8] @ x - B.to(d), 0 * ones(8, d)).x,
    "implicit": slope_of_root,
}


def tensors(result: Any) -> list[Tensor]:
    """Every floating tensor in a result."""
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    if isinstance(result, list | tuple):
        return [t for x in result for t in tensors(x)]
    if isinstance(result, Mapping):
        return [t for x in result.values() for t in tensors(x)]
    if dataclasses.is_dataclass(result):
        return [t for f in dataclasses.fields(result) for t in tensors(getattr(result, f.name))]
    return []
