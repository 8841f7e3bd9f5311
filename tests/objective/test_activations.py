import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frechet.objective import Objective
from frechet.objective._functions import Functions
from frechet.objective.criteria import squared_error
from frechet.operators.derivatives import hessian
from frechet.operators.derivatives._products import hessian_product, jacobian_product
from laws import close
from objective_cases import randn

X = torch.cat([torch.linspace(-12, 12, 49, dtype=torch.float64), torch.tensor([1e-9, 40.0, -300.0])])


def gelu(x):
    return F.gelu(x, approximate="tanh")


def gelu_in_operations(x):
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def derivatives(f, x, orders):
    """f and its derivatives at every element of x."""
    x = x.clone().requires_grad_()
    found = [f(x)]
    for _ in range(orders):
        found.append(torch.autograd.grad(found[-1].sum(), x, create_graph=True)[0])
    return [t.detach() for t in found]


functions = pytest.mark.parametrize(
    ("f", "operations"), [(gelu, gelu_in_operations), (F.silu, lambda x: x / (1 + torch.exp(-x)))], ids=["gelu", "silu"]
)


@functions
def test_four_derivatives_are_those_of_the_function(f, operations):
    expected = derivatives(operations, X[:-2], 4)
    with Functions():
        found = derivatives(f, X[:-2], 4)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@functions
def test_values_and_first_derivatives_are_torchs_own_and_second_ones_finite_far_out(f, operations):
    expected = derivatives(f, X, 1)
    with Functions():
        found = derivatives(f, X, 2)
    for a, b in zip(found, expected, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
    assert found[2][-2:].abs().max() < 1e-99


@functions
def test_single_precision_is_as_good_as_torchs(f, operations):
    exact = derivatives(operations, X[:-2], 2)[2]
    torchs = derivatives(f, X[:-2].float(), 2)[2]
    with Functions():
        found = derivatives(f, X[:-2].float(), 2)[2]
    assert (found - exact).abs().max() < 2 * (torchs - exact).abs().max() + 1e-7


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script`:DeprecationWarning"
)  # torch's forward mode, when it is first used
@functions
def test_every_transform_goes_through(f, operations):
    x, v = randn(3, 4), randn(3, 4, seed=1)

    def energy(g):
        return lambda x: g(x).pow(2).sum()

    H, J = torch.func.hessian(energy(operations))(x).reshape(12, 12), torch.func.jacrev(operations)(x).reshape(12, 12)
    with Functions():
        close(torch.func.hessian(energy(f))(x).reshape(12, 12), H)  # forward over reverse, under vmap
        close(torch.func.jacrev(torch.func.jacrev(energy(f)))(x).reshape(12, 12), H)
        close(torch.func.jacfwd(torch.func.jacfwd(energy(f)))(x).reshape(12, 12), H)
        close(torch.func.jvp(f, (x,), (v,))[1].flatten(), J @ v.flatten())
        close(torch.func.vmap(torch.func.grad(energy(f)))(x), torch.func.grad(energy(operations))(x))
    close(hessian_product(energy(f), x, v).detach().flatten(), H @ v.flatten())
    close(jacobian_product(f, x, v).detach().flatten(), J @ v.flatten())


def test_a_model_that_writes_over_its_activations_is_left_alone():
    x = randn(5)
    with Functions():
        y = F.silu(x.clone(), inplace=True)
    assert torch.equal(y, F.silu(x))


def test_products_take_the_formula_whether_a_module_or_a_function_asks_for_it(monkeypatch):
    taken = []
    monkeypatch.setitem(
        __import__("frechet.objective._functions", fromlist=["_FORMULAS"])._FORMULAS,
        F.silu,
        lambda input, inplace=False: taken.append(None) or F.relu(input),
    )

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return F.silu(self.layer(x))

    for model, times in ((nn.Sequential(nn.Linear(2, 2), nn.SiLU()), 1), (Own(), 1), (nn.Linear(2, 2), 0)):
        H = hessian(Objective(model.double(), squared_error(), [(randn(3, 2), randn(3, 2))]))
        taken.clear()
        H @ randn(6)
        assert len(taken) == times
