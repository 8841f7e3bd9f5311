import pytest
import torch
from torch import nn

from counting import counting
from frechet.errors import NoClosedForm
from frechet.linalg.systems._solve import solve
from frechet.objective import Objective, l2
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators._closed_form import inverse, square_root
from frechet.operators._constructors import from_diagonal, identity
from frechet.operators._operator import Fact
from frechet.operators._structured import LowRank, Matrix
from frechet.operators.derivatives._example_factors import by_examples
from frechet.operators.derivatives._gauss_newton import OutputProduct, empirical_fisher, gauss_newton
from objective_models import F64, labels, randn, seeded


def network():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


def classes(*sizes):
    return [(randn(n, 4, seed=n), labels(3, n, seed=n)) for n in sizes]


def sequences():
    """Four examples of five terms, some of which do not count."""
    y = labels(3, 4, 5)
    y[0, 1:], y[2, 3] = -100, -100
    return [(randn(4, 5, 4), y)]


OBJECTIVES = {
    "batches": lambda: Objective(network(), cross_entropy(), classes(3, 2, 4)),
    "a multiple": lambda: 3.0 * Objective(network(), cross_entropy(), classes(6)),
    "a difference": lambda: -0.5 * Objective(network(), cross_entropy(), classes(6)),
    "a penalty": lambda: Objective(network(), cross_entropy(), classes(6), penalty=l2(0.3)),
    "more examples than parameters": lambda: Objective(network(), cross_entropy(), classes(60)),
    "sequences": lambda: Objective(network(), cross_entropy(), sequences()),
    "several outputs": lambda: Objective(network(), squared_error(), [(randn(7, 4), randn(7, 3, seed=2))]),
}


def two_parts():
    model = network()
    first = Objective(model, cross_entropy(), classes(3, 2))
    return first + 2.0 * Objective(model, squared_error(), [(randn(4, 4, seed=8), randn(4, 3, seed=9))])


OBJECTIVES["two parts"] = two_parts


def close(found, wanted):
    return torch.allclose(found, wanted, rtol=1e-9, atol=1e-11 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_empirical_fisher_and_its_inverse_by_gradients_of_examples(name):
    E = empirical_fisher(OBJECTIVES[name](), per="example")
    n, M = E.shape[0], E.dense()
    assert close(by_examples(E).dense(), M)
    assert isinstance(by_examples(E), Matrix if name.startswith("more") else LowRank)
    for c in (1e-3, 1.0, 50.0):
        A = E + c * identity(E.domain)
        B = inverse(A)
        assert close(B.dense(), torch.linalg.inv(M + c * torch.eye(n, dtype=F64)))
        assert Fact.POSITIVE_DEFINITE in B.facts
        assert close(square_root(A).dense() @ square_root(A).dense(), A.dense())
    d = 0.1 + randn(n).abs()
    B = inverse(2.0 * E + from_diagonal(d, domain=E.domain) + 0.5 * E)
    assert close(B.dense(), torch.linalg.inv(2.5 * M + torch.diag(d)))


@pytest.mark.parametrize("name", ["batches", "a multiple", "a penalty"])
def test_terms_are_examples_where_each_has_one(name):
    E = empirical_fisher(OBJECTIVES[name](), per="term")
    A = E + 0.1 * identity(E.domain)
    assert close(inverse(A).dense(), torch.linalg.inv(A.dense()))


@pytest.mark.parametrize("name", ["sequences", "several outputs", "two parts"])
def test_several_terms_of_an_example_have_no_closed_form(name):
    E = empirical_fisher(OBJECTIVES[name](), per="term")
    with pytest.raises(NoClosedForm, match=r"inverse: .*made of OutputProduct, Identity.*; use solve\(A, b\)"):
        inverse(E + identity(E.domain))


def test_a_part_of_the_parameters_and_single_precision():
    objective = OBJECTIVES["batches"]()
    E = empirical_fisher(objective, per="example", restrict=["2.*"])
    A = E + 0.1 * identity(E.domain)
    assert close(inverse(A).dense(), torch.linalg.inv(A.dense()))
    data = [(X.float(), y) for X, y in classes(3, 2)]
    E = empirical_fisher(Objective(network().float(), cross_entropy(), data), per="example")
    A = E + 0.1 * identity(E.domain)
    assert torch.allclose(inverse(A).dense().double(), torch.linalg.inv(A.dense().double()), rtol=1e-4, atol=1e-4)


def test_without_a_shift_it_is_singular_where_examples_are_few():
    with pytest.raises(ValueError, match=r"inverse: A must be nonsingular, got rank 9 on R\^43"):
        inverse(empirical_fisher(OBJECTIVES["batches"](), per="example"))


def test_no_gradients_are_taken_where_there_is_no_closed_form_and_none_by_solve(monkeypatch):
    def refuse(_E):
        raise AssertionError("gradients of examples were taken")

    monkeypatch.setattr("frechet.operators.derivatives._example_factors._factors", refuse)
    objective = OBJECTIVES["batches"]()
    E, G = empirical_fisher(objective, per="example"), gauss_newton(objective)
    assert isinstance(E, OutputProduct)
    with pytest.raises(NoClosedForm):
        inverse(E + G)
    b = E.domain.random(0, 0)
    s = solve(E + identity(E.domain), b)
    assert "cg" in s.message
    A, count = counting(E + identity(E.domain))
    assert torch.allclose(A @ s.x, b, rtol=1e-4, atol=1e-5)
    assert count.total == 1
