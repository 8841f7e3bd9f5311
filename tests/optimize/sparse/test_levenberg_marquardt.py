import pytest
import torch
from scipy import sparse

from frechet import from_matrix
from frechet.errors import NonFinite, NotDifferentiable
from frechet.linalg._result import Status
from frechet.optimize._least_squares.least_squares import least_squares
from frechet.optimize._sparse import symbolic
from sparse_problems import PROBLEMS, gaussian, index, structure_of
from spectra import F64


def flat(x):
    return x.reshape(-1) if isinstance(x, torch.Tensor) else torch.cat([b.reshape(-1) for b in x.values()])


def agree(problem, found, dense, digits=1e-7):
    assert found.converged, found.message
    assert dense.converged, dense.message
    assert abs(found.cost - dense.cost) <= 1e-10 * dense.cost + 1e-25
    if problem.unique:
        assert torch.allclose(flat(found.x), flat(dense.x), rtol=digits, atol=digits)


@pytest.mark.parametrize("jacobian", ["auto", "products"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_minimum_is_that_of_dense_jacobians(name, jacobian):
    problem = PROBLEMS[name]()
    found = least_squares(problem.residual, problem.x0, structure=problem.structure, jacobian=jacobian)
    agree(problem, found, least_squares(problem.residual, problem.x0))
    assert ("lsmr" in found.method) == (jacobian == "products")
    assert found.covariance is None
    assert found.cost <= found.start_cost
    assert found.history[0] == found.start_cost


@pytest.mark.parametrize("name", ["shared", "poses", "priors", "tridiagonal", "random_pattern"])
@pytest.mark.parametrize("jacobian", ["2-point", "3-point"])
def test_differences_take_one_or_two_residuals_for_each_color(name, jacobian):
    problem = PROBLEMS[name]()
    found = least_squares(problem.residual, problem.x0, structure=problem.structure, jacobian=jacobian)
    agree(problem, found, least_squares(problem.residual, problem.x0), 1e-6)
    each = structure_of(problem).count * (1 if jacobian == "2-point" else 2)
    assert f"{each} residuals for each Jacobian" in found.method
    assert found.residual_evaluations >= each * found.jacobian_evaluations
    assert found.residual_evaluations <= (each + 2) * found.jacobian_evaluations + 10


@pytest.mark.parametrize("name", ["bundle", "two_kinds"])
@pytest.mark.parametrize(("jacobian", "ftol"), [("2-point", 1e-8), ("3-point", 0.0)])
def test_errors_of_differences_are_no_directions_where_the_gauge_is_free(name, jacobian, ftol):
    problem = PROBLEMS[name]()
    found = least_squares(problem.residual, problem.x0, structure=problem.structure, jacobian=jacobian, ftol=ftol)
    dense = least_squares(problem.residual, problem.x0)
    assert found.converged, found.message
    assert found.cost == pytest.approx(dense.cost, rel=1e-6)
    assert found.iterations < 50


@pytest.mark.parametrize("name", ["shared", "priors", "poses"])
def test_robust_losses(name):
    problem = PROBLEMS[name]()
    scale = {"loss": "soft_l1", "loss_scale": 0.02}
    found = least_squares(problem.residual, problem.x0, structure=problem.structure, **scale)
    agree(problem, found, least_squares(problem.residual, problem.x0, **scale), 1e-6)


@pytest.mark.parametrize(
    "convert", [lambda J: J, lambda J: sparse.csr_array(J.numpy()), from_matrix, lambda J: J.numpy()]
)
def test_a_jacobian_of_the_caller_is_multiplied_with_the_colors(convert):
    problem = PROBLEMS["shared"]()

    def jacobian(x):
        names = list(x)
        blocks = torch.autograd.functional.jacobian(
            lambda *b: problem.residual(dict(zip(names, b, strict=True))), tuple(x.values())
        )
        return convert(torch.cat([block.reshape(40, -1) for block in blocks], 1))

    found = least_squares(problem.residual, problem.x0, structure=problem.structure, jacobian=jacobian)
    agree(problem, found, least_squares(problem.residual, problem.x0))


# with `poses` held from below, the free places end where a sine has its maximum: second derivatives decide there
@pytest.mark.parametrize(
    ("name", "sign"),
    [(name, sign) for name in ("shared", "independent", "random_pattern", "tridiagonal") for sign in (1, -1)]
    + [("poses", -1)],
)
def test_bounds_hold_what_they_hold_with_dense_jacobians(name, sign):
    problem = PROBLEMS[name]()
    free = least_squares(problem.residual, problem.x0)
    middle = {k: b.median() + 0.01 for k, b in free.x.items()} if isinstance(free.x, dict) else free.x.median() + 0.01
    infinite = float("inf")
    bounds = (middle, infinite) if sign > 0 else (-infinite, middle)
    dense = least_squares(problem.residual, problem.x0, bounds=bounds)
    found = least_squares(problem.residual, problem.x0, bounds=bounds, structure=problem.structure)
    agree(problem, found, dense, 1e-6)
    assert torch.equal(found.active, dense.active)


@pytest.mark.parametrize("power", [-9, 9])
@pytest.mark.parametrize("name", ["shared", "poses", "priors"])
def test_units_of_parameters_and_of_the_residual_change_nothing(name, power):
    problem, unit = PROBLEMS[name](), 10.0**power
    plain = least_squares(problem.residual, problem.x0, structure=problem.structure)

    def residual(x):
        r = problem.residual({k: b / unit for k, b in x.items()} if isinstance(x, dict) else x / unit)
        return {k: y / unit for k, y in r.items()} if isinstance(r, dict) else r / unit

    x0 = {k: b * unit for k, b in problem.x0.items()} if isinstance(problem.x0, dict) else problem.x0 * unit
    found = least_squares(residual, x0, structure=problem.structure)
    assert found.converged, found.message
    assert found.cost * unit**2 == pytest.approx(plain.cost, rel=1e-9)
    assert torch.allclose(flat(found.x) / unit, flat(plain.x), rtol=1e-6, atol=1e-7)


def test_single_precision():
    problem = PROBLEMS["shared"]()
    x0 = {k: b.float() for k, b in problem.x0.items()}
    found = least_squares(lambda x: problem.residual(x).float(), x0, structure=problem.structure)
    exact = least_squares(problem.residual, problem.x0)
    assert found.converged, found.message
    assert found.x["curves"].dtype == torch.float32
    assert torch.allclose(flat(found.x).double(), flat(exact.x), atol=1e-4)


@pytest.mark.parametrize("jacobian", ["auto", "products"])
def test_blocks_that_are_seen_once_or_never_do_no_harm(jacobian):
    """A point seen once has a ray of places; a camera that sees nothing stays where it is."""
    camera, point = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0]), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4])
    cameras, points = 0.1 * gaussian(1, 3, 2), gaussian(2, 6, 3)

    def project(x):
        q = x["points"][point] + torch.nn.functional.pad(x["cameras"][camera], (0, 1))
        return q[:, :2] / (5 + q[:, 2:])

    data = project({"cameras": cameras, "points": points})
    x0 = {"cameras": cameras + 0.01, "points": points + 0.02 * gaussian(3, 6, 3)}
    s = least_squares(
        lambda x: project(x) - data, x0, structure={"cameras": camera, "points": point}, jacobian=jacobian
    )
    assert s.converged, s.message
    assert s.residual < 1e-10
    assert torch.equal(s.x["cameras"][2], x0["cameras"][2])
    assert torch.equal(s.x["points"][5], x0["points"][5])


@pytest.mark.parametrize("jacobian", ["auto", "products"])
@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_a_residual_whose_column_vanishes_at_the_solution_is_reached(jacobian, unit):
    """mu D^2 must not fade with the column: cos(x) + 2 is least at pi, where its derivative is zero."""
    which = torch.arange(3).repeat_interleave(2)
    x0 = torch.tensor([2.0, 2.5, 4.0], dtype=F64)
    s = least_squares(lambda x: unit * (x[which].cos() + 2), x0, structure=which, jacobian=jacobian)
    assert s.cost == pytest.approx(3.0 * unit**2, rel=1e-6)


# --- the truth --------------------------------------------------------------------------------------------------------


def wrong(name):
    """A structure that leaves out something that the residual reads."""
    problem = PROBLEMS[name]()
    declared = problem.structure
    match name:
        case "bundle":
            declared = {**declared, "points": declared["points"].roll(1)}
        case "shared":
            declared = {"curves": declared["curves"]}
        case "poses":
            declared = declared[:, :1]
        case "independent":
            declared = declared.flip(0)
        case "priors":
            declared = {**declared, "prior": {"marks": torch.tensor([0, 1, 2, 3, 0, 1])}}
        case "two_kinds":
            declared = {**declared, "lines": {"lines": declared["lines"]["lines"]}}
        case "tridiagonal":
            declared = declared & torch.ones(12, 12, dtype=torch.bool).triu()
        case "random_pattern":
            declared = declared.to_dense()
            declared[7, declared[7].nonzero()[0]] = False
    return problem, declared


@pytest.mark.parametrize("jacobian", ["auto", "products", "2-point", "3-point"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_an_incomplete_structure_is_refused(name, jacobian):
    problem, declared = wrong(name)
    with pytest.raises(ValueError, match="structure must declare all that a residual reads"):
        least_squares(problem.residual, problem.x0, structure=declared, jacobian=jacobian)


def test_the_undeclared_parameter_is_named():
    problem, declared = wrong("shared")
    with pytest.raises(ValueError, match="reads 'offset' undeclared"):
        least_squares(problem.residual, problem.x0, structure=declared)
    chain = torch.tensor([[0, 1], [1, 2], [2, 3]])
    with pytest.raises(ValueError, match=r"reads x\[4\] undeclared"):
        least_squares(lambda x: x[chain].sum(1) - x[4], torch.ones(5, dtype=F64), structure=chain)


def test_what_is_read_later_only_is_refused_there():
    """At x0 the residual does not see its neighbour, beyond 1 it does."""
    which = torch.arange(4)

    def residual(x):
        return x - torch.tensor([3.0, 3.0, 3.0, 2.0], dtype=F64) + torch.relu(x.roll(1) - 1)

    with pytest.raises(ValueError, match="structure must declare all that a residual reads"):
        least_squares(residual, torch.zeros(4, dtype=F64), structure=which)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_structure_that_declares_too_much_costs_products_alone(name):
    problem = PROBLEMS[name]()
    r = problem.residual(problem.x0)
    m = sum(y.numel() for y in r.values()) if isinstance(r, dict) else r.numel()
    everything = torch.ones(m, len(flat(problem.x0)), dtype=torch.bool)
    found = least_squares(problem.residual, problem.x0, structure=everything)
    agree(problem, found, least_squares(problem.residual, problem.x0))


def test_discontinuities_and_dead_exponentials_are_no_solutions():
    which = torch.arange(4)
    s = least_squares(lambda x: torch.where(x < 0.3, x + 2, x - 0.1), torch.ones(4, dtype=F64), structure=which)
    assert s.status is Status.STAGNATED
    t = torch.linspace(0, 5, 20, dtype=F64)
    one = torch.zeros(20, dtype=torch.int64)
    dead = least_squares(
        lambda x: x["a"][one] * 0 + torch.exp(-(x["k"][one] ** 2) * t * 1e3) - 1 - t,
        {"a": torch.ones(1, dtype=F64), "k": torch.ones(1, dtype=F64)},
        structure={"a": one, "k": one},
    )
    assert dead.status is Status.STAGNATED or dead.residual < 3


def test_observe_limits_and_values_that_are_not_finite():
    problem = PROBLEMS["bundle"]()
    seen = []
    s = least_squares(
        problem.residual,
        problem.x0,
        structure=problem.structure,
        observe=lambda state: seen.append(state) or len(seen) > 2,
    )
    assert s.status is Status.STOPPED
    assert [state.iteration for state in seen] == [0, 1, 2]
    assert (
        least_squares(problem.residual, problem.x0, structure=problem.structure, max_evaluations=2).status
        is Status.MAX_ITERATIONS
    )
    which = torch.arange(3)
    with pytest.raises(NonFinite, match="Jacobian must be finite at x0"):
        least_squares(lambda x: x.sqrt() - 1, torch.zeros(3, dtype=F64), structure=which)
    s = least_squares(lambda x: x.sqrt() - 1, torch.full((3,), 9.0, dtype=F64), structure=which)
    assert s.converged, s.message
    assert torch.allclose(s.x, torch.ones(3, dtype=F64))
    with pytest.raises(NotDifferentiable, match="residual must depend on x through torch operations"):
        least_squares(lambda x: x.detach() - 1, torch.zeros(3, dtype=F64), structure=which)
    with pytest.raises(ValueError, match="method must be 'levenberg-marquardt' where structure is given"):
        least_squares(lambda x: x - 1, torch.zeros(3, dtype=F64), structure=which, method="dogleg")


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_pattern_that_nobody_declared_is_found(name):
    problem = PROBLEMS[name]()
    found = least_squares(problem.residual, problem.x0, structure="find")
    agree(problem, found, least_squares(problem.residual, problem.x0))
    r = flat(problem.residual(problem.x0))
    assert found.products >= 2 * min(len(r), len(flat(problem.x0)))


def test_a_branch_that_is_not_taken_near_the_start_is_refused_later():
    def branch(x):
        return torch.cat([x - 3, torch.relu(x[:1] - 1) * x[1:2]])

    with pytest.raises(ValueError, match="structure must declare all that a residual reads"):
        least_squares(branch, torch.zeros(3, dtype=F64), structure="find")


# --- cost -------------------------------------------------------------------------------------------------------------


def test_gathered_rows_cost_as_many_passes_as_a_group_has_residuals():
    problem = PROBLEMS["bundle"]()
    s = least_squares(problem.residual, problem.x0, structure=problem.structure)
    assert "2 backward passes" in s.method
    assert 0 <= s.products - 3 * s.jacobian_evaluations - 1 <= 10  # gradients alone at the end
    reshaped = least_squares(
        lambda x: problem.residual({k: b * 1 for k, b in x.items()}), problem.x0, structure=problem.structure
    )
    assert "9 products" in reshaped.method
    assert 0 <= reshaped.products - 10 * reshaped.jacobian_evaluations - 1 <= 10
    agree(problem, s, reshaped)


@pytest.mark.parametrize("dense", [True, False])
def test_a_long_chain_needs_neither_many_products_nor_a_dense_matrix(dense, monkeypatch):
    n = 3000
    pattern = sparse.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(n, n))
    if dense:
        monkeypatch.setattr(symbolic, "SMALL", n)

    def residual(x):
        zero = x.new_zeros(1)
        return (3 - 2 * x) * x + 1 - torch.cat([zero, x[:-1]]) - 2 * torch.cat([x[1:], zero])

    s = least_squares(residual, -torch.ones(n, dtype=F64), structure=pattern)
    assert s.converged, s.message
    assert s.residual < 1e-12
    assert 0 <= s.products - 4 * s.jacobian_evaluations - 1 <= 10
    assert ("sparse factors" in s.method) == (not dense)


def test_shared_parameters_of_many_groups_are_eliminated_or_kept():
    which = index(400, 3000)
    t = torch.linspace(0.1, 3, 3000, dtype=F64)
    amplitude = 1 + 0.1 * gaussian(1, 400)
    y = amplitude[which] * torch.exp(-0.5 * t) + 0.01 * gaussian(2, 3000)
    s = least_squares(
        lambda x: x["each"][which, 0] * torch.exp(-x["rate"] * t) - y,
        {"each": torch.ones(400, 1, dtype=F64), "rate": torch.ones((), dtype=F64)},
        structure={"each": which, "rate": "all"},
    )
    assert s.converged, s.message
    assert float(s.x["rate"]) == pytest.approx(0.5, abs=0.01)
    assert "dense factors of 1 columns after elimination of 'each'" in s.method
