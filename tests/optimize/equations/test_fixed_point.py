import pytest
import torch

from frechet.errors import NonFinite
from frechet.linalg._result import Status
from frechet.linalg.systems._gmres import gmres
from frechet.operators._constructors import from_matrix
from frechet.optimize._equations.fixed_point import fixed_point
from more_garbow_hillstrom import numbers
from spectra import F64, gaussian


def linear(n, size):
    M = gaussian(n * n).view(n, n)
    M = size * M / torch.linalg.matrix_norm(M, 2)
    b = gaussian(n, seed=3)
    return M, b, torch.linalg.solve(torch.eye(n, dtype=F64) - M, b)


def test_a_contraction_is_solved_faster_than_by_itself():
    M, b, exact = linear(30, 0.9)
    quick = fixed_point(lambda x: M @ x + b, torch.zeros(30, dtype=F64), memory=10).checked()
    plain = fixed_point(lambda x: M @ x + b, torch.zeros(30, dtype=F64), memory=0).checked()
    assert torch.allclose(quick.x, exact, atol=1e-9)
    assert torch.allclose(plain.x, exact, atol=1e-8)
    assert quick.iterations < plain.iterations


def test_with_full_memory_it_is_gmres():
    M, b, exact = linear(8, 3.0)  # no contraction at all
    s = fixed_point(lambda x: M @ x + b, torch.zeros(8, dtype=F64), memory=8)
    assert s.iterations <= 12
    assert torch.allclose(s.x, exact, atol=1e-8)
    inner = gmres(from_matrix(torch.eye(8, dtype=F64) - M), b, rtol=1e-13)
    assert torch.allclose(s.x, inner.x, atol=1e-8)


def test_residual_is_recomputed_and_counts_are_true():
    calls = []
    s = fixed_point(lambda x: calls.append(1) or torch.cos(x), numbers(1, 0.2))
    assert s.converged
    assert len(calls) == s.iterations + 1 == len(s.history)
    assert s.residual == pytest.approx(float(torch.linalg.vector_norm(torch.cos(s.x) - s.x)), abs=1e-18)


def test_divergence_goes_back_with_less_mixing():
    s = fixed_point(lambda x: -8 * x + 9, numbers(5), memory=0)  # converges for mixing below 2 / 9 only
    assert s.converged
    assert float(s.x) == pytest.approx(1)
    s = fixed_point(lambda x: torch.log(x) + 2, numbers(0.2))  # NaN on the way
    assert float(s.x) == pytest.approx(3.1461932206, rel=1e-8) or float(s.x) == pytest.approx(0.1585943396, rel=1e-8)
    assert fixed_point(lambda x: x + 1, numbers(0), memory=0).status in (Status.STAGNATED, Status.MAX_ITERATIONS)


def test_dicts_shapes_float32_limits_and_stops():
    s = fixed_point(lambda x: {"a": torch.cos(x["a"]), "b": x["b"] / 2}, {"a": numbers(1), "b": numbers(1, 1)})
    assert s.x.tolist() == pytest.approx([0.739085133215, 0, 0], abs=1e-9)
    s = fixed_point(torch.cos, torch.ones(2, 2))
    assert s.converged
    assert s.x.shape == (2, 2)
    assert fixed_point(torch.cos, numbers(1), max_iterations=2).status is Status.MAX_ITERATIONS
    s = fixed_point(torch.cos, numbers(1), observe=lambda state: state.iteration == 2)
    assert (s.status, s.iterations) == (Status.STOPPED, 2)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="fixed_point: memory must be >= 0, got -1"):
        fixed_point(torch.cos, numbers(1), memory=-1)
    with pytest.raises(ValueError, match=r"fixed_point: mixing must lie in \(0, 1\], got 2"):
        fixed_point(torch.cos, numbers(1), mixing=2.0)
    with pytest.raises(NonFinite, match=r"fixed_point: g must be finite at x0, got norm\(g\(x0\) - x0\) = nan"):
        fixed_point(torch.log, numbers(-1))


@pytest.mark.parametrize("memory", [0, 2, 5])
@pytest.mark.parametrize("start", [0.0, 2.0, -1e3, 1e10, 1e20, 1e100])
def test_converged_is_a_property_of_the_point_and_not_of_the_start(start, memory):
    s = fixed_point(lambda x: 0.5 * x + 1, numbers(start, start), rtol=1e-10, memory=memory)
    assert s.converged
    assert s.x.tolist() == pytest.approx([2, 2], rel=1e-9)


def test_towards_zero_an_absolute_tolerance_decides():
    x0 = numbers(1.0, -3.0)
    assert fixed_point(lambda x: x / 2, x0, memory=0, max_iterations=100).status is Status.MAX_ITERATIONS
    assert fixed_point(lambda x: x / 2, x0, memory=0, atol=1e-9).converged


def projected_gradient(seed, size=30, rank=6):
    """The map of a quadratic program in the unit box: a contraction with a kink at every bound."""
    A, sign = gaussian(size * rank, seed=seed).view(size, rank), torch.sign(gaussian(size, seed=100 + seed))
    K = (A @ A.T / 10) * torch.outer(sign, sign) + 0.5 * torch.eye(size, dtype=F64)
    return lambda a: (a - 0.05 * (K @ a - 1)).clamp(0, 1)


@pytest.mark.parametrize("memory", [0, 1, 2, 5, 10])
def test_kinks_in_a_contraction_do_not_use_up_the_mixing(memory):
    plain = 0
    for seed in range(8):
        g, x0 = projected_gradient(seed), torch.zeros(30, dtype=F64)
        s = fixed_point(g, x0, rtol=1e-11, memory=memory)
        assert s.converged
        plain += fixed_point(g, x0, rtol=1e-11, memory=0).iterations - s.iterations
    assert plain > 0 or memory == 0


def test_the_mixing_grows_back_where_only_the_start_was_steep():
    def g(x):  # -40 far away: a mixing of 1/32 is all that holds there; 1/2 near 1, where larger ones are faster
        return torch.where((x - 1).abs() > 3, 1 - 40 * (x - 1), 1 + 0.5 * (x - 1))

    s = fixed_point(g, numbers(200.0), memory=0, rtol=1e-13)
    assert s.converged
    assert s.iterations < 200  # 1/32 for all of them takes more than 1 900


def test_a_run_that_ends_early_says_why():
    assert "the mixing has become tiny" in fixed_point(lambda x: x * x + 1, numbers(1)).message
    assert "max_iterations was reached" in fixed_point(torch.cos, numbers(1), max_iterations=1).message
    assert "observe returned True" in fixed_point(torch.cos, numbers(1), observe=lambda state: True).message


def test_a_dict_is_matched_by_its_names_and_other_shapes_are_refused():
    x0 = {"a": torch.zeros(1, dtype=F64), "b": torch.zeros(2, dtype=F64)}
    s = fixed_point(lambda x: {"b": x["b"] / 2 + 2, "a": x["a"] / 2 + 1}, x0).checked()
    assert s.x.tolist() == pytest.approx([2, 4, 4])
    s = fixed_point(lambda x: x.double() / 2 + 1, torch.zeros(2)).checked()  # in the dtype of x0
    assert s.x.tolist() == pytest.approx([2, 2])
    with pytest.raises(ValueError, match=r"fixed_point: g must return what x0 is, of shape \(2, 3\), got \(3, 2\)"):
        fixed_point(lambda x: x.T, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"fixed_point: g must return what x0 is.*got \{'a': \(1,\), 'c': \(2,\)\}"):
        fixed_point(lambda x: {"a": x["a"], "c": x["b"]}, x0)


@pytest.mark.parametrize(
    ("x0", "sentence"),
    [
        (1.0, r"x0 must be a tensor or a dict of tensors, got float; write torch\.tensor\(x0\)"),
        (torch.tensor([1, 2]), r"x0 must have a floating-point dtype, got torch\.int64; write x0\.double\(\)"),
        ({"a": 2.0}, r"x0 must be a tensor or a dict of tensors, got float in block 'a'; write torch\.tensor\(2\.0"),
        ({"a": torch.ones(1), "b": torch.ones(1).double()}, "x0 must have one dtype"),
        (torch.ones(1) * 1j, r"x0 must have a floating-point dtype, got torch\.complex64"),
    ],
)
def test_starts_are_checked(x0, sentence):
    with pytest.raises(TypeError, match=f"fixed_point: {sentence}"):
        fixed_point(lambda x: x, x0)
