import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch

from cases import F64, definite_operator, random
from counting import counting
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix
from frechet.operators._scipy import to_scipy
from frechet.space import euclidean

M = random(4, 6)
A = from_matrix(M)


def test_products_and_transposed_products_agree():
    B, X = to_scipy(A), np.arange(18.0).reshape(6, 3)
    assert np.allclose(B @ X, M.numpy() @ X)
    assert np.allclose(B @ X[:, 0], M.numpy() @ X[:, 0])
    assert np.allclose(B @ X[:, :1], M.numpy() @ X[:, :1])
    for transposed in (B.T, B.H):
        assert np.allclose(transposed @ X[:4], M.numpy().T @ X[:4])
        assert np.allclose(transposed @ X[:4, 0], M.numpy().T @ X[:4, 0])
    assert np.allclose((B.T @ B) @ X, M.numpy().T @ M.numpy() @ X)


def test_shape_and_dtype_are_those_of_the_operator():
    assert to_scipy(A).shape == (4, 6)
    assert to_scipy(A).dtype == np.float64
    small = to_scipy(from_matrix(M.float()))
    assert small.dtype == np.float32
    assert (small @ np.ones(6)).dtype == np.float32


def test_complex_vectors_are_two_real_products():
    x = np.arange(6) + 1j * np.ones(6)
    assert np.allclose(to_scipy(A) @ x, M.numpy() @ x)


def test_input_is_left_alone_and_may_be_read_only():
    x = np.ones(6)
    x.flags.writeable = False
    B = to_scipy(from_callable(lambda V: V.mul_(2.0), euclidean(6, F64), facts="symmetric"))
    assert np.array_equal(B @ x, 2 * np.ones(6))
    assert np.array_equal(x, np.ones(6))
    y = np.ones(6)
    B @ y
    assert np.array_equal(y, np.ones(6))


def test_eigsh_cg_svds_and_gmres_take_it():
    D = definite_operator(12)
    b = np.ones(12)
    x, info = sla.cg(to_scipy(D), b, rtol=1e-10)
    assert info == 0
    assert np.allclose(D.dense().numpy() @ x, b, atol=1e-7)
    x, info = sla.gmres(to_scipy(D), b, rtol=1e-10)
    assert info == 0
    assert np.allclose(D.dense().numpy() @ x, b, atol=1e-7)
    largest = sla.eigsh(to_scipy(D), k=1, return_eigenvectors=False, v0=b)
    assert largest[0] == pytest.approx(float(torch.linalg.eigvalsh(D.dense())[-1]))
    singular = sla.svds(to_scipy(A), k=2, return_singular_vectors=False, v0=np.ones(4))
    assert sorted(singular) == pytest.approx(sorted(torch.linalg.svdvals(M)[:2].tolist()))


def test_a_block_is_one_call_and_each_column_one_product():
    B, count = counting(A)
    to_scipy(B) @ np.ones((6, 5))
    assert (count.products, count.transposed) == (5, 0)
    to_scipy(B).T @ np.ones((4, 2))
    assert (count.products, count.transposed) == (5, 2)


def test_a_dtype_that_numpy_lacks_is_refused():
    with pytest.raises(
        TypeError, match=r"to_scipy: A must have a dtype that NumPy has, got torch.bfloat16; use float32"
    ):
        to_scipy(from_diagonal(torch.ones(3, dtype=torch.bfloat16)))
