import pytest
import torch

from frechet.optimize._least_squares.least_squares import least_squares
from sparse_problems import gaussian, index
from spectra import F64

WHICH, OTHER = index(5, 20, 1), index(3, 20, 2)
TRUE = {"a": gaussian(1, 5, 3), "b": gaussian(2, 3, 3)}
X0 = {"a": TRUE["a"] + 0.1, "b": TRUE["b"] - 0.1}
STRUCTURE = {"a": WHICH, "b": OTHER}


DATA = torch.zeros(20, 4, dtype=F64)


def model(a, b):
    bent = 0.2 * torch.sin(a) + b
    return torch.stack([a[:, 0] - 0.5 * b[:, 0], a[:, 1] + bent[:, 0], a[:, 2] - bent[:, 1], bent[:, 2]], 1) - DATA


DATA = model(TRUE["a"][WHICH], TRUE["b"][OTHER]) + 0.01 * gaussian(3, 20, 4)
READS = {
    "brackets": lambda x: model(x["a"][WHICH], x["b"][OTHER]),
    "index_select": lambda x: model(x["a"].index_select(0, WHICH), torch.index_select(x["b"], 0, OTHER)),
    "twice": lambda x: model(x["a"][WHICH], x["b"][OTHER] + 0 * x["b"][OTHER]),
    "columns": lambda x: model(torch.stack([x["a"][WHICH, i] for i in range(3)], 1), x["b"][OTHER, :]),
    "another tensor": lambda x: model(x["a"][WHICH.clone()], x["b"][OTHER + 0]),
    "changed in place": lambda x: model(x["a"][WHICH].mul_(1.0), x["b"][OTHER]),
}
OTHERWISE = {
    "a copy": lambda x: model((1 * x["a"])[WHICH], x["b"][OTHER]),
    "a loop": lambda x: model(torch.stack([x["a"][i] for i in WHICH.tolist()]), x["b"][OTHER]),
    "a mask": lambda x: model(torch.nn.functional.one_hot(WHICH, 5).double() @ x["a"], x["b"][OTHER]),
    "a gather": lambda x: model(x["a"].gather(0, WHICH[:, None].expand(20, 3)), x["b"][OTHER]),
    "a list": lambda x: model(x["a"][WHICH.tolist()], x["b"][OTHER]),
}


@pytest.mark.parametrize("name", READS)
def test_rows_that_are_taken_by_the_declared_index_come_by_backward_passes(name):
    s = least_squares(READS[name], X0, structure=STRUCTURE)
    exact = least_squares(READS["brackets"], X0)
    assert s.converged, s.message
    assert "4 backward passes for each Jacobian" in s.method
    assert s.cost == pytest.approx(exact.cost, rel=1e-10)


@pytest.mark.parametrize("name", OTHERWISE)
def test_rows_that_are_read_otherwise_come_by_colors(name):
    s = least_squares(OTHERWISE[name], X0, structure=STRUCTURE)
    exact = least_squares(READS["brackets"], X0)
    assert s.converged, s.message
    assert "6 products for each Jacobian" in s.method
    assert s.cost == pytest.approx(exact.cost, rel=1e-10)


@pytest.mark.parametrize(
    "residual",
    [
        lambda x: model(x["a"][WHICH], x["b"][OTHER]) + 0.1 * x["a"][WHICH].roll(1, 0)[:, :1],
        lambda x: model(x["a"][WHICH], x["b"][OTHER]).cumsum(0),
        lambda x: model(x["a"][WHICH], x["b"][OTHER]) - 0.1 * x["b"][OTHER].mean(),
        lambda x: model(x["a"][WHICH], x["b"][OTHER]) + x["b"][0, 0],
    ],
)
def test_groups_that_read_the_rows_of_others_are_refused(residual):
    with pytest.raises(ValueError, match="structure must declare all that a residual reads"):
        least_squares(residual, X0, structure=STRUCTURE)


def test_a_function_without_second_derivatives_will_do():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    which = torch.arange(4)
    s = least_squares(
        lambda x: torch.stack([Square.apply(x[which, 0]) - 2, x[which, 1] - x[which, 0]], 1).sum(1) + x[which, 1],
        torch.ones(4, 2, dtype=F64),
        structure=which,
    )
    assert s.converged, s.message
    assert s.residual < 1e-12
