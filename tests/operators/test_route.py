import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from frechet.operators.gauss_newton import fisher, gauss_newton
from frechet.operators.hessian import hessian
from frechet.operators.jacobian import jacobian
from frechet.operators.products import dual_numbers
from frechet.operators.route import chosen, lacks_forward
from objective_cases import MAKERS, conv_net_with_batch_norm, prepared


def test_the_default_is_reverse_except_for_gauss_newton_of_convolutions():
    for make in MAKERS:
        objective = prepared(make)[0].objective
        convolves = any(isinstance(m, nn.Conv2d) for m in objective.model.modules())
        assert hessian(objective).route == "reverse"
        assert gauss_newton(objective).route == ("forward" if convolves else "reverse")
    objective = prepared(conv_net_with_batch_norm)[0].objective
    assert fisher(objective).route == jacobian(objective).route == "forward"
    assert gauss_newton(objective, route="reverse").route == "reverse"


def test_a_convolution_beside_a_module_without_forward_mode_goes_in_reverse():
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.LSTM(1, 1))
    assert chosen(None, model, "gauss_newton", gauss_newton=True) == "reverse"


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_modules_without_forward_mode_are_named():
    def linear():
        return nn.Linear(2, 2)

    for m in (
        nn.LSTM(1, 1),
        nn.GRU(1, 1),
        nn.TransformerEncoderLayer(2, 1),
        nn.Embedding(3, 1, padding_idx=0),
        nn.utils.weight_norm(linear()),
        nn.utils.parametrizations.weight_norm(linear()),
        nn.utils.spectral_norm(linear()),
        nn.utils.parametrizations.spectral_norm(linear()),
    ):
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
