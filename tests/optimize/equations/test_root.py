import math

import pytest
import torch
from scipy.optimize import root as scipy_root

from frechet.errors import NonFinite, NotConverged, NotDifferentiable
from frechet.linalg._result import Status
from frechet.operators._constructors import from_matrix
from frechet.optimize._equations.root import root
from frechet.space import Space
from more_garbow_hillstrom import numbers

F64 = torch.float64


def broyden(x):
    zero = x.new_zeros(1)
    return (3 - 2 * x) * x + 1 - torch.cat([zero, x[:-1]]) - 2 * torch.cat([x[1:], zero])


def bratu(u):
    """-u'' = exp(u) on (0, 1), zero at the ends."""
    zero, h = u.new_zeros(1), 1 / (len(u) + 1)
    return (2 * u - torch.cat([zero, u[:-1]]) - torch.cat([u[1:], zero])) - h * h * u.exp()


def test_known_roots_and_scipys():
    s = root(lambda x: torch.stack([x[0] ** 2 + x[1] ** 2 - 1, x[0] - x[1]]), numbers(1, 0.5)).checked()
    assert s.x.tolist() == pytest.approx([0.5**0.5] * 2, rel=1e-12)
    s = root(broyden, -torch.ones(200, dtype=F64)).checked()
    theirs = scipy_root(lambda x: broyden(torch.from_numpy(x)).numpy(), -torch.ones(200, dtype=F64).numpy(), tol=1e-13)
    assert torch.allclose(s.x, torch.from_numpy(theirs.x), atol=1e-9)
    assert float(broyden(s.x).abs().max()) < 1e-10
    assert s.residual == pytest.approx(float(torch.linalg.vector_norm(broyden(s.x))))


def test_a_boundary_value_problem():
    s = root(bratu, torch.zeros(63, dtype=F64)).checked()
    # closed form: u = -2 log(cosh((x - 1/2) a / 2) / cosh(a / 4)), a = sqrt(2) cosh(a / 4)
    a = 1.5
    for _ in range(100):
        a = math.sqrt(2) * math.cosh(a / 4)
    assert float(s.x[31]) == pytest.approx(2 * math.log(math.cosh(a / 4)), rel=2e-4)  # to the square of the mesh


def test_forcing_terms_save_products():
    s = root(bratu, torch.zeros(63, dtype=F64), jacobian="products").checked()
    exact = 63 * s.iterations
    assert s.products < exact
    ratios = [b / a for a, b in zip(s.history[:-1], s.history[1:], strict=True)]
    assert min(ratios) < 1e-2  # superlinear at the end


def test_dicts_shapes_and_float32():
    s = root(lambda x: {"p": x["a"] - 1, "q": x["b"] ** 2 - 4}, {"a": torch.zeros(2, dtype=F64), "b": numbers(1)})
    assert s.x.tolist() == pytest.approx([1, 1, 2])
    s = root(lambda x: x**2 - 4, torch.ones(2, 2)).checked()
    assert s.x.shape == (2, 2)
    assert torch.allclose(s.x, torch.full((2, 2), 2.0))
    assert Space.of({"": s.x}).dtype == torch.float32


def test_steps_are_shortened_where_newton_overshoots_or_leaves_the_domain():
    assert float(root(torch.atan, numbers(10)).checked().x) == pytest.approx(0, abs=1e-9)
    assert float(root(torch.log, numbers(20)).checked().x) == pytest.approx(1)


def test_no_root_is_stagnated_and_a_root_at_the_start_is_one():
    s = root(lambda x: x**2 + 1, numbers(0.7))
    assert s.status is Status.STAGNATED
    assert s.iterations < 60
    with pytest.raises(NotConverged, match="which is no root"):
        s.checked()
    s = root(lambda x: x - 1, numbers(1))
    assert (s.status, s.iterations, s.products) == (Status.CONVERGED, 0, 0)


def test_bounds_choose_the_root():
    def cubic(x):
        return (x - 1) * (x - 2) * (x + 3)

    for low, high, wanted in [(1.5, 5, 2), (-9, -1, -3), (0, 1.2, 1)]:
        s = root(cubic, numbers((low + high) / 2), bounds=(low, high)).checked()
        assert float(s.x) == pytest.approx(wanted, rel=1e-10)
        assert "projected" in s.message
    s = root(cubic, numbers(4), bounds=(3.0, 5.0))
    assert s.status is Status.STAGNATED
    assert float(s.x) == 3
    states = []
    root(cubic, numbers(4), bounds=(1.5, 5.0), observe=lambda state: bool(states.append(state)))
    assert states[0].residual == pytest.approx(float(cubic(numbers(4))))


def test_limits_stops_and_wrong_arguments():
    s = root(broyden, -torch.ones(20, dtype=F64), max_iterations=1)
    assert (s.status, s.iterations) == (Status.MAX_ITERATIONS, 1)
    s = root(broyden, -torch.ones(20, dtype=F64), observe=lambda s: s.iteration == 2)
    assert (s.status, s.iterations) == (Status.STOPPED, 2)
    with pytest.raises(NonFinite, match=r"root: F must be finite at x0, got nan in entry 0"):
        root(torch.log, numbers(-1))
    with pytest.raises(
        ValueError, match="root: F must return as many numbers as x0 has, got 1 for 2; for other counts"
    ):
        root(lambda x: x[:1], numbers(1, 2))
    with pytest.raises(
        ValueError, match="root: F must return as many numbers as x0 has, got 1 for 2; for other counts"
    ):
        root(lambda x: x[:1], numbers(1, 2), bounds=(0.0, 3.0))
    with pytest.raises(TypeError, match="root: F must return a tensor or a dict of tensors, got str"):
        root(lambda x: "1", numbers(1, 2))
    with pytest.raises(TypeError, match="root: F must return a tensor or a dict of tensors, got float"):
        root(lambda x: 1.0, numbers(1, 2), jacobian="products")
    with pytest.raises(NonFinite, match=r"root: F must be finite at x0, got norm\(F\) = nan"):
        root(torch.log, numbers(-1), jacobian="products")
    with pytest.raises(TypeError, match=r"root: F must be real, got a complex tensor; return torch\.view_as_real"):
        root(lambda x: x + 1j, numbers(1, 2))
    with pytest.raises(NotDifferentiable, match="root: F must depend on x through torch operations"):
        root(lambda x: x.detach() * 2, numbers(1, 2))
    with pytest.raises(TypeError, match="root: jacobian must return a LinearOperator where n = 600, got Tensor"):
        root(lambda x: x - 1, torch.zeros(600), jacobian=lambda x: torch.eye(600))
    with pytest.raises(TypeError, match=r"root: bounds must be a pair \(lower, upper\)"):
        root(broyden, numbers(1, 2), bounds=3.0)
    with pytest.raises(ValueError, match="root: rtol must be a number >= 0, got -1"):
        root(broyden, numbers(1, 2), rtol=-1)


def trigonometric(x):
    """Trigonometric function of More, Garbow and Hillstrom; x = 0 is a root, on the lower bounds of the tests."""
    n = len(x)
    return n - torch.cos(x).sum() + torch.arange(1, n + 1, dtype=x.dtype) * (1 - torch.cos(x)) - torch.sin(x)


@pytest.mark.parametrize("n", [1, 4, 10])
@pytest.mark.parametrize("start", [0.1, 0.5, 1.0])
def test_the_message_between_bounds_says_what_the_status_says(n, start):
    s = root(trigonometric, torch.full((n,), start, dtype=F64), bounds=(0.0, 3.0))
    words = {
        Status.CONVERGED: ("is zero to the tolerance", "is as small as F is exact"),
        Status.STAGNATED: ("which is no root", "no step reduces norm(F)"),
        Status.MAX_ITERATIONS: ("the limit of 1000 iterations",),  # steps that creep along the bound
    }
    for status, sentences in words.items():
        assert any(w in s.message for w in sentences) == (status is s.status)
    low = root(lambda x: x * x + 1, torch.ones(n, dtype=F64), bounds=(-2.0, 2.0))
    assert low.status is Status.STAGNATED
    assert low.message.endswith("which is no root; start elsewhere")


def of_two(a, b):
    return lambda x: torch.stack([a(x[0], x[1]), b(x[0], x[1])])


# systems on which one path of a trust region ends at a minimum of the norm, creeps, or meets a singular Jacobian
HARD = {
    "powell's badly scaled": (
        of_two(lambda a, b: 1e4 * a * b - 1, lambda a, b: (-a).exp() + (-b).exp() - 1.0001),
        (0, 1),
    ),
    "freudenstein and roth": (
        of_two(lambda a, b: a - 13 + ((5 - b) * b - 2) * b, lambda a, b: a - 29 + ((b + 1) * b - 14) * b),
        (15, 3),
    ),
    "a cubic valley": (of_two(lambda a, b: a - 1, lambda a, b: 10 * (b - a**3)), (-1.2, 1)),
    "a circle and a parabola": (of_two(lambda a, b: a * a + b * b - 4, lambda a, b: b - a * a), (1, 0)),
    "units apart by 1e12": (of_two(lambda a, b: 1e6 * (a * 1e-3 - 2), lambda a, b: 1e-6 * (b * b - a)), (1, 1)),
    "a singular root": (of_two(lambda a, b: a * a, lambda a, b: b - 1), (1, 3)),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("jacobian", ["auto", "3-point", "own"])
def test_hard_systems_have_their_roots(name, jacobian):
    F, x0 = HARD[name]
    own = torch.func.jacrev(F)
    s = root(F, numbers(*x0), jacobian=own if jacobian == "own" else jacobian)
    assert s.converged, s.message
    terms = own(s.x) * s.x
    assert float(F(s.x).norm()) <= max(1e-11 * float(terms.norm()), 1e-30)
    assert s.residual == pytest.approx(float(F(s.x).norm()), rel=1e-6, abs=1e-300)


@pytest.mark.parametrize("start", [-3.0, 0.5, 4.0, 1e3])
@pytest.mark.parametrize("unit", [1e-150, 1e-6, 1.0, 1e6, 1e150])
def test_a_minimum_of_the_norm_is_told_from_a_root_in_any_units(start, unit):
    s = root(lambda x: unit * ((x - 1) ** 2 + 0.1), numbers(start))
    assert s.status is Status.STAGNATED
    assert f"norm(F) has a minimum of {0.1 * unit:.3g} there, which is no root" in s.message
    assert "noise" not in s.message
    s = root(lambda x: unit * ((x - 1) ** 2 - 0.25), numbers(start)).checked()
    assert float(s.x) in (pytest.approx(0.5), pytest.approx(1.5))


@pytest.mark.parametrize(
    "F", [lambda x: torch.exp(-x), lambda x: 1 / x, lambda x: torch.exp(-x) + 1 / (1 + x * x), lambda x: x**-3]
)
def test_a_norm_that_falls_for_ever_is_said_to(F):
    s = root(F, numbers(1))
    assert s.status is Status.STAGNATED
    assert "runs to infinity" in s.message


def test_roots_at_zero_on_plateaus_and_at_the_rounding_of_f():
    assert float(root(lambda x: torch.clamp(x - 1, max=0), numbers(-5)).checked().x) == pytest.approx(1)  # a plateau
    assert float(root(lambda x: x * x, numbers(1)).checked().x) == pytest.approx(0, abs=1e-150)
    assert float(root(torch.expm1, numbers(5)).checked().x) == pytest.approx(0, abs=1e-30)
    s = root(lambda x: ((x + 1e8) - 1e8) - 0.3, numbers(7)).checked()  # exact to 1e-8
    assert float(s.x) == pytest.approx(0.3, abs=1e-7)
    assert root(lambda x: x, torch.zeros(0)).converged


def test_numpy_functions_by_differences_and_operators_by_products():
    s = root(lambda x: x.numpy() ** 2 - 2, numbers(1), jacobian="3-point").checked()
    assert float(s.x) == pytest.approx(2**0.5, rel=1e-12)
    A = torch.diag(torch.arange(1.0, 701.0, dtype=F64))
    s = root(lambda x: A @ x - 1, torch.zeros(700, dtype=F64), jacobian=lambda x: from_matrix(A)).checked()
    assert torch.allclose(s.x, 1 / A.diagonal())
    assert "gmres" in s.message


@pytest.mark.parametrize("jacobian", ["auto", "products"])
def test_dtypes_of_values_are_those_of_the_unknowns(jacobian):
    s = root(lambda x: x.double() ** 2 - 2, torch.ones(3), jacobian=jacobian).checked()
    assert s.x.dtype == torch.float32
    assert torch.allclose(s.x, torch.full((3,), 2**0.5))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_root_at_zero_of_a_linear_system_is_one(seed, shift):
    """Each Newton step leaves the rounding of the last: relative to x, F never gets small."""
    A = torch.randn(5, 5, dtype=F64, generator=torch.Generator().manual_seed(seed))
    exact = torch.tensor([0.0, shift, 0.0, 2 * shift, 0.0], dtype=F64)
    s = root(lambda x: A @ (x - exact), 100 * torch.ones(5, dtype=F64)).checked()
    assert torch.allclose(s.x, exact, atol=1e-12)


def test_a_dict_of_blocks_of_any_shape_has_its_root_as_one_vector():
    s = root(
        lambda x: {"p": x["b"].T - 2, "q": x["a"] ** 2 - 9},
        {"a": torch.ones(()).double(), "b": torch.zeros(2, 3).double()},
    )
    assert s.checked().x.tolist() == pytest.approx([3, *[2] * 6])
