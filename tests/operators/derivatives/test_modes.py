import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from frechet.errors import NotDifferentiable
from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.operators._check import check_operator
from frechet.operators.derivatives._gauss_newton import fisher, gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._jacobian import jacobian
from frechet.operators.derivatives._modes import chosen, lacks_forward
from frechet.operators.derivatives._products import dual_numbers
from objective_cases import MAKERS, conv_net_with_batch_norm, prepared


def test_the_default_is_reverse_for_hessians_and_forward_where_first_derivatives_do():
    for make in MAKERS:
        objective = prepared(make)[0].objective
        assert hessian(objective).route == "reverse"
        lacking = lacks_forward(objective.model) is not None
        assert gauss_newton(objective).route == ("reverse" if lacking else "forward")
    objective = prepared(conv_net_with_batch_norm)[0].objective
    assert fisher(objective).route == jacobian(objective).route == "forward"
    assert gauss_newton(objective, route="reverse").route == "reverse"


def test_a_convolution_beside_a_module_without_forward_mode_goes_in_reverse():
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.LSTM(1, 1))
    assert chosen(None, model, "gauss_newton", gauss_newton=True) == "reverse"


def test_modules_without_forward_mode_are_named():
    for m in (nn.LSTM(1, 1), nn.GRU(1, 1), nn.RNN(1, 1), nn.Embedding(3, 1, padding_idx=0)):
        model = nn.Sequential(nn.Tanh(), m)
        assert lacks_forward(model).startswith("'1' (")
        with pytest.raises(
            ValueError, match=r"hessian: route='forward' cannot go through module '1' \(\w+\); use route='rev"
        ):
            chosen("forward", model, "hessian", gauss_newton=False)
    assert lacks_forward(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Embedding(3, 1), nn.MultiheadAttention(2, 1))) is None


def test_an_embedding_with_padding_would_not_be_symmetric_in_forward_mode():
    weight, tokens = torch.ones(3, 1, requires_grad=True), torch.tensor([0, 1])
    with dual_numbers():
        dual = forward_ad.make_dual(weight.detach(), torch.ones(3, 1))
        forward = forward_ad.unpack_dual(nn.functional.embedding(tokens, dual, padding_idx=0)).tangent
    (backward,) = torch.autograd.grad(nn.functional.embedding(tokens, weight, padding_idx=0).sum(), weight)
    assert float(forward.sum()) != float(backward.sum())  # once they agree, the refusal can go


class FunctionalEmbedding(nn.Module):
    def __init__(self, padding_idx):
        super().__init__()
        self.table, self.padding_idx = nn.Parameter(torch.randn(5, 3, dtype=torch.float64)), padding_idx

    def forward(self, x):
        return nn.functional.embedding(x, self.table, padding_idx=self.padding_idx).tanh().sum(1)


@pytest.mark.parametrize("operator", [gauss_newton, fisher, jacobian])
def test_a_functional_embedding_with_a_padding_row_goes_in_reverse_and_is_refused_in_forward_mode(operator):
    data = [(torch.tensor([[0, 1], [2, 0]]), torch.zeros(2, 3, dtype=torch.float64))]
    padded = Objective(FunctionalEmbedding(0), squared_error(), data)
    with pytest.raises(NotDifferentiable, match=r"padding_idx=0 .* use route='reverse'"):
        operator(padded, route="forward").dense()
    A = operator(padded)
    assert check_operator(A, seed=0).checked()
    assert A.route == "reverse"
    assert "padding_idx=0" in A.way.reason
    plain = operator(Objective(FunctionalEmbedding(None), squared_error(), data))
    assert check_operator(plain, seed=0).checked()
    G = gauss_newton(padded, route="reverse")
    assert check_operator(G, seed=0).checked()
    assert float(G.dense()[:3].abs().max()) == 0.0  # the padding row has no curvature


def test_a_function_of_ones_own_may_keep_what_it_likes():
    class Named(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return 2 * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.name = "doubled"  # hides the node's own

        @staticmethod
        def backward(ctx, g):
            return 2 * g

        @staticmethod
        def jvp(ctx, t):
            return 2 * t

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1).double()

        def forward(self, x):
            return Named.apply(self.layer(x))

    data = [(torch.ones(2, 1).double(), torch.zeros(2, 1).double())]
    objective = Objective(Model(), squared_error(), data)
    expected = gauss_newton(Objective(Model().layer, squared_error(), data)).dense() * 4
    assert torch.allclose(gauss_newton(objective).dense(), expected)
    assert objective.check().kinks == ()
