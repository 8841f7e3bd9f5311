import pytest
import torch

from frechet import implicit
from frechet.calculus import kkt_conditions, root_conditions, solution_jacobian, stationary_conditions

F64 = torch.float64


def test_wrong_conditions_are_noticed_with_the_number():
    a = torch.tensor([4.0], dtype=F64, requires_grad=True)
    with pytest.raises(ValueError, match=r"conditions of a root must hold .* got norm\(F\) = 2 where .* allows 0.008;"):
        implicit(torch.sqrt, lambda x, a: x**2 - a / 2)(a)
    with pytest.raises(ValueError, match="stationary point must hold"):
        implicit(lambda a: a + 0.1, stationary_conditions(lambda x, a: ((x - a) ** 2).sum()))(a)
    implicit(lambda a: a + 0.1, stationary_conditions(lambda x, a: ((x - a) ** 2).sum()), tolerance=0.1)(a)


def test_what_is_not_an_input_is_refused():
    weight = torch.nn.Linear(1, 1, dtype=F64)
    a = torch.ones(1, dtype=F64, requires_grad=True)
    solver = lambda a: weight(a).detach()  # noqa: E731
    with pytest.raises(ValueError, match=r"only as inputs, got one of shape .* closed over"):
        implicit(solver, lambda x, a: x - weight(a))(a)
    parameters = dict(weight.named_parameters())

    def F(x, a, p):
        return x - torch.func.functional_call(weight, p, (a,))

    x = implicit(lambda a, p: weight(a), F)(a, parameters)
    x.sum().backward()
    assert float(weight.weight.grad) == 1.0
    assert a.grad.tolist() == [weight.weight.item()]


def test_conditions_that_leave_torch_are_refused():
    a = torch.ones(2, dtype=F64, requires_grad=True)
    with pytest.raises(ValueError, match="must depend on x by torch operations"):
        implicit(lambda a: a, lambda x, a: torch.as_tensor(x.detach().numpy()) - a)(a)


def test_a_number_of_equations_that_is_not_that_of_the_unknowns_is_refused():
    a = torch.ones(2, dtype=F64, requires_grad=True)
    with pytest.raises(ValueError, match="as many numbers as there are unknowns, got 1 for 2"):
        implicit(torch.sqrt, lambda x, a: (x**2 - a).sum())(a)


def test_equations_of_another_shape_are_read_in_order():
    a = torch.tensor([[4.0], [9.0]], dtype=F64)
    D = solution_jacobian(lambda x, a: x.reshape(-1) ** 2 - a.reshape(-1), a.sqrt(), a)
    assert torch.allclose(D.dense(), torch.diag(torch.tensor([1 / 4, 1 / 6], dtype=F64)))


def test_equations_in_a_dict_are_matched_by_name():
    a = torch.tensor([4.0, 9.0], dtype=F64)
    x = {"u": a[:1].sqrt(), "v": a[1:].sqrt()}

    def F(x, a):
        return {"v": 3 * (x["v"] ** 2 - a[1:]), "u": x["u"] ** 2 - a[:1]}

    D = solution_jacobian(root_conditions(F, facts="positive_definite"), x, a)
    assert torch.allclose(D.dense(), torch.diag(torch.tensor([1 / 4, 1 / 6], dtype=F64)))


def test_a_batch_needs_one_axis_of_problems():
    y = torch.rand(3, 2, dtype=F64, requires_grad=True)
    total = kkt_conditions(lambda x, y: ((x - y) ** 2).sum(1), equality=lambda x, y: x.sum() - 3)
    with pytest.raises(ValueError, match=r"needs unknowns with one common axis 0, got sizes \[\[3\], \[\]\]"):
        implicit(lambda y: y - (y.sum() - 3) / 6, total, batch=True)(y)


def test_the_residual_is_judged_by_what_a_change_of_x_makes():
    # the same conditions in other units, and of a badly scaled x
    a = torch.tensor([4.0, 9e8], dtype=F64, requires_grad=True)
    for scale in (1e-12, 1.0, 1e12):
        F = lambda x, a, scale=scale: scale * (x**2 - a)  # noqa: E731
        implicit(lambda a: a.sqrt() * (1 + 1e-5), F)(a)
        with pytest.raises(ValueError, match="must hold at the solution"):
            implicit(lambda a: a.sqrt() * (1 + 1e-2), F)(a)
