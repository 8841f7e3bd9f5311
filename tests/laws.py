"""What every LinearOperator must do. Each law is ``law(A, case)`` with ``case.dense`` the matrix of A in float64."""

import torch

from frechet.operators._constructors import identity, restriction
from frechet.operators._operator import Adjoint, Fact

RTOL = 1e-10


def close(X, Y, scale=None):
    scale = max(float(Y.abs().max()) if Y.numel() else 0.0, scale or 0.0)
    assert X.shape == Y.shape, f"shape {tuple(X.shape)}, expected {tuple(Y.shape)}"
    worst = float((X - Y).abs().max()) if Y.numel() else 0.0
    assert worst <= RTOL * scale, f"off by {worst:.3g} where entries reach {scale:.3g}"


def block(space, k, seed):
    return space.random(range(k), seed, "gaussian")


def agrees_with_dense(A, case):
    V = block(A.domain, 3, 1)
    close(A @ V, case.dense @ V)
    close(A @ V[:, 0], case.dense @ V[:, 0])
    close(A.dense(), case.dense)
    assert A.shape == tuple(case.dense.shape)


def transposes(A, case):
    U = block(A.codomain, 3, 2)
    close(A.T @ U, case.dense.T @ U)
    close(A.T.dense(), case.dense.T)
    assert A.T.shape == A.shape[::-1]
    # a symmetric A is its own .T; its _rmatmat, which products call, must agree too
    close(Adjoint(A) @ U, case.dense.T @ U)


def transpose_of_transpose_is_itself(A, case):
    # the transpose of B is made anew at each read: nothing is cached on operators
    assert A.T.T.operator is A.T if isinstance(A, Adjoint) else A.T.T is A
    assert (A.T is A) == (Fact.SYMMETRIC in A.facts)


def is_linear(A, case):
    u, v = block(A.domain, 2, 3).T
    left, right = A @ (2.0 * u - 0.7 * v), 2.0 * (A @ u) - 0.7 * (A @ v)
    close(left, right, scale=float(case.dense.abs().max()) if case.dense.numel() else 0.0)
    close(A @ (1e6 * v), 1e6 * (A @ v))
    assert not bool((A @ torch.zeros_like(v)).any())


def acts_on_columns(A, case):
    for B, space in ((A, A.domain), (A.T, A.codomain)):
        V = block(space, 4, 4)
        close(B @ V, torch.stack([B @ v for v in V.T], dim=1))
        close(B @ V.contiguous(), B @ V)  # whatever the layout in memory
        close(B @ V[:, ::2], (B @ V)[:, ::2])
        assert (B @ V[:, :0]).shape == (B.codomain.dim, 0)


def maps_dicts_to_dicts(A, case):
    v = block(A.domain, 1, 5)[:, 0]
    result = A @ A.domain.unflatten(v)
    assert list(result) == list(A.codomain.names)
    assert tuple(tuple(t.shape) for t in result.values()) == A.codomain.shapes
    close(A.codomain.flatten(result), case.dense @ v)


def facts_hold(A, case):
    assert_facts(A.facts, case.dense)


def facts_hold_on_compositions(A, case):
    M, m, n = case.dense, *A.shape
    left, right = torch.eye(m, dtype=M.dtype), torch.eye(n, dtype=M.dtype)
    semidefinite, definite = Fact.POSITIVE_SEMIDEFINITE, Fact.POSITIVE_DEFINITE
    for B, N, expected in (
        (A.T, M.T, A.facts),
        (A @ A.T, M @ M.T, {semidefinite}),
        (A.T @ A, M.T @ M, {semidefinite}),
        (A + A, 2 * M, A.facts),
        (A - A, 0 * M, A.facts & {Fact.SYMMETRIC}),
        (3.0 * A, 3 * M, A.facts),
        (-A, -M, A.facts & {Fact.SYMMETRIC}),
        (A @ A.T + 0.5 * identity(A.codomain), M @ M.T + 0.5 * left, {definite}),
        (A.T @ A + 0.5 * identity(A.domain), M.T @ M + 0.5 * right, {definite}),
        (A.T @ (A @ A.T + 0.5 * identity(A.codomain)) @ A, M.T @ (M @ M.T + 0.5 * left) @ M, {semidefinite}),
    ):
        close(B.dense(), N, scale=float(M.abs().max()) if M.numel() else 0.0)
        assert_facts(B.facts, N)
        assert set(expected) <= B.facts, f"{set(expected) - B.facts} was not derived"


def assert_facts(facts, M):
    if not facts:
        return
    assert M.shape[0] == M.shape[1]
    assert Fact.SYMMETRIC in facts
    close(M, M.T)
    values = torch.linalg.eigvalsh(M)
    if not values.numel():
        return
    size = float(values.abs().max())
    if Fact.POSITIVE_SEMIDEFINITE in facts:
        assert float(values[0]) >= -RTOL * size, f"eigenvalue {float(values[0]):.3g} of a semidefinite operator"
    if Fact.POSITIVE_DEFINITE in facts:
        assert Fact.POSITIVE_SEMIDEFINITE in facts
        assert float(values[0]) > RTOL * size, f"eigenvalue {float(values[0]):.3g} of a definite operator"


def restricts_to_submatrices(A, case):
    scale = float(case.dense.abs().max()) if case.dense.numel() else 0.0
    for name in A.domain.names:
        R = restriction(A.domain, name)
        close((A @ R.T).dense(), case.dense[:, A.domain.block(name)], scale)
    for name in A.codomain.names:
        R = restriction(A.codomain, name)
        rows = A.codomain.block(name)
        close((R @ A).dense(), case.dense[rows], scale)
        if A.domain == A.codomain:
            B = R @ A @ R.T
            close(B.dense(), case.dense[rows, rows], scale)
            assert_facts(B.facts, case.dense[rows, rows])
            assert A.facts - {Fact.POSITIVE_DEFINITE} <= B.facts


def keeps_dtype_and_device(A, case):
    for B, space in ((A, A.domain), (A.T, A.codomain)):
        V = block(space, 2, 6)
        for argument, shape in ((V, (B.codomain.dim, 2)), (V[:, 0], (B.codomain.dim,))):
            result = B @ argument
            assert tuple(result.shape) == shape
            assert result.dtype == B.codomain.dtype == space.dtype
            assert result.device == B.codomain.device == space.device


def keeps_no_graph(A, case):
    for B, space in ((A, A.domain), (A.T, A.codomain)):
        V = block(space, 2, 7).requires_grad_()
        for argument in (V, V[:, 0]):
            result = B @ argument
            assert not result.requires_grad
            assert result.grad_fn is None
    assert not A.dense().requires_grad


def leaves_its_input(A, case):
    for B, space in ((A, A.domain), (A.T, A.codomain)):
        V = block(space, 2, 8)
        v = V[:, 0].clone()
        before = V.clone(), v.clone()
        for result in (B @ V, B @ v):
            if result.numel():
                result.flatten()[0] += 1.0
                result[0] = 7.0  # what is returned belongs to the caller
        assert torch.equal(V, before[0])
        assert torch.equal(v, before[1])


def multiplies_from_the_left(A, case):
    U = block(A.codomain, 3, 9)
    close(U.T @ A, U.T @ case.dense)
    close(U[:, 0] @ A, U[:, 0] @ case.dense)
    u = A.codomain.unflatten(U[:, 0])
    close(A.domain.flatten(u @ A), U[:, 0] @ case.dense)


def repeats_itself(A, case):
    V, W = block(A.domain, 2, 10), block(A.domain, 2, 11)
    first, _, second = A @ V, A @ W, A @ V
    assert torch.equal(first, second)


LAWS = [
    agrees_with_dense,
    transposes,
    transpose_of_transpose_is_itself,
    is_linear,
    acts_on_columns,
    maps_dicts_to_dicts,
    facts_hold,
    facts_hold_on_compositions,
    restricts_to_submatrices,
    keeps_dtype_and_device,
    keeps_no_graph,
    leaves_its_input,
    multiplies_from_the_left,
    repeats_itself,
]
