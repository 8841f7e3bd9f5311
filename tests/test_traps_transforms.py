"""The traps of `test_traps.py` about wrappers, compilation and linearization (C)."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from frechet.errors import NotDifferentiable
from frechet.objective import Objective
from frechet.operators.derivatives._gauss_newton import gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._products import hessian_product
from laws import block, close
from module_cases import checkpointed
from objective_cases import F64, dense_hessian, prepared, randn, tanh_mlp


# C (c): a second derivative through DistributedDataParallel is local and warns
def test_a_distributed_wrapper_is_taken_off():
    case, _ = prepared(tanh_mlp)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(case.objective.model))
        H = hessian(Objective(wrapped, nn.MSELoss(), case.objective.parts[0].data))
        close(H.dense(), hessian(case.objective).dense())
        assert H.domain == case.space
    finally:
        dist.destroy_process_group()


# C (d): double backward through a compiled model is an error
def test_a_model_that_was_compiled_in_place_runs_eagerly():
    case, _ = prepared(tanh_mlp)
    model = copy.deepcopy(case.objective.model)
    model.compile(backend="aot_eager")
    model[0].compile(backend="aot_eager")
    objective = Objective(model, nn.MSELoss(), case.objective.parts[0].data)
    close(hessian(objective).dense(), hessian(case.objective).dense())
    close(gauss_newton(objective).dense(), gauss_newton(case.objective).dense())


def branching(x):
    return (x**3).sum() if float(x[0].detach()) > 0 else (x**2).sum()


def spectrum(x):
    A = x.outer(x) + torch.diag(x + 3)
    return torch.linalg.eigh(A)[0].pow(2).sum() + torch.linalg.cholesky(A @ A.T + torch.eye(4, dtype=F64)).sum()


FINE = {
    "a branch on a value": branching,
    "eigh and cholesky": spectrum,
    "sort": lambda x: (x.sort()[0] * torch.arange(4.0, dtype=F64)).sin().sum(),
    "softmax": lambda x: x.softmax(0).pow(2).sum() + x.logsumexp(0),
    "solve": lambda x: torch.linalg.solve(x.outer(x) + torch.eye(4, dtype=F64), x).sum(),
    "singular values": lambda x: torch.linalg.svdvals(x.view(2, 2)).pow(3).sum(),
    "fft": lambda x: torch.fft.rfft(x).abs().pow(3).sum(),
    "cumulative": lambda x: x.cumsum(0).cumprod(0).sum(),
    "unbiased variance": lambda x: x.var() ** 2 + x.norm(),
}


@pytest.mark.parametrize("name", FINE)
@pytest.mark.parametrize("route", ["reverse", "forward"])
# C (e): what torch linearizes, and a branch, which it does not
def test_operations_of_a_function_agree_with_dense_double_backward(name, route):
    x = randn(4).abs() + torch.arange(4, dtype=F64) / 3 + 0.2
    close(hessian(FINE[name], x, route=route).dense(), torch.autograd.functional.hessian(FINE[name], x))


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


# C (e): no forward mode: grid_sample, functions of one's own without jvp
def test_operations_without_forward_mode_are_right_in_reverse_and_say_so_in_forward():
    grid = torch.rand(1, 2, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) - 0.5
    functions = {
        "grid_sampler_2d": lambda x: F.grid_sample(x.view(1, 1, 2, 2).sin(), grid, align_corners=False).pow(2).sum(),
        "jvp": lambda x: Squared.apply(x).sin().sum(),
    }
    x = randn(4)
    for missing, f in functions.items():
        H = hessian(f, x)
        e = 1e-5
        steps = torch.eye(4, dtype=F64) * e
        slopes = [(slope(f, x + s) - slope(f, x - s)) / (2 * e) for s in steps]
        assert float((H.dense() - torch.stack(slopes)).abs().max()) < 1e-8
        with pytest.raises(NotDifferentiable, match=f"hessian: .*{missing}.*try the other route="):
            hessian(f, x, route="forward").dense()


def slope(f, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


# C (f): no second derivative
def test_operations_without_a_second_derivative_say_so():
    y, length = torch.tensor([0, 1]), torch.tensor([2])
    functions = {
        "cdist": lambda x: torch.cdist(x, x.flip(0)).sum(),
        "pdist": lambda x: F.pdist(x).sum(),
        "multi_margin": lambda x: F.multi_margin_loss(x, y),
        "ctc": lambda x: F.ctc_loss(x.log_softmax(1)[:, None], torch.tensor([[1]]), length, length - 1),
    }
    for missing, f in functions.items():
        with pytest.raises(NotDifferentiable, match=f"hessian: .*{missing}.*replace that operation"):
            hessian(f, randn(2, 2)).dense()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
# C, last: an activation checkpoint runs again with the parameters of the operator, not with those of the model
def test_a_checkpoint_recomputes_at_the_operators_point():
    case = checkpointed()
    x = 1.5 * case.objective.point
    H, expected = hessian(case.objective, x), dense_hessian(case, x)
    with torch.no_grad():
        for p in case.objective.model.parameters():
            p.mul_(-2.0)
    V = block(H.domain, 2, 1)
    close(H @ V, expected @ V)
    close(case.objective.gradient(x), torch.autograd.grad(case.loss(y := x.clone().requires_grad_()), y)[0])
    with pytest.raises(NotDifferentiable, match=r"Objective.value: the model saves tensors through hooks"):
        hessian_product(case.objective.value, x, V[:, 0])
    case.objective.model.reentrant = True
    for ask in (
        lambda: hessian(case.objective) @ V,
        lambda: gauss_newton(case.objective) @ V,
        case.objective.gradient,
        case.objective.check,
    ):
        with pytest.raises(NotDifferentiable, match="pass use_reentrant=False to torch"):
            ask()
    assert float(case.objective.value(x)) > 0  # needs no derivative
