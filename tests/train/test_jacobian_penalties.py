import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from frechet.errors import NotDifferentiable
from frechet.train import jacobian_asymmetry, jacobian_frobenius, jacobian_nuclear

F64 = torch.float64


def inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Attention(nn.Module):
    """Two tokens of each example look at each other."""

    def __init__(self):
        super().__init__()
        self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(x + self.mix(x, x, x)[0]).mean(1)


def models():
    torch.manual_seed(0)
    return {
        "mlp": (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (4,)),
        "relu": (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (4,)),
        "convolutions": (
            nn.Sequential(nn.Conv2d(1, 3, 3), nn.GELU(), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(12, 3)), (1, 4, 4)
        ),
        "attention": (Attention(), (2, 4)),
        "batch norm, evaluated": (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh()).eval(), (4,)),
        "maps": (nn.Sequential(nn.Conv1d(2, 2, 3), nn.SiLU()), (2, 4)),  # outputs (m, 2, 2)
    }  # fmt: skip


MODELS = tuple(models())


def dense(model, x):
    """The Jacobian ``(m, C, inputs)`` of each example, as a function of the parameters."""
    parameters = dict(model.named_parameters())
    one = vmap(jacrev(lambda z: functional_call(model, parameters, (z[None],))[0].flatten()))
    return one(x).flatten(2)


@pytest.mark.parametrize("name", MODELS)
def test_all_directions_give_the_dense_norm_and_its_gradient(name):
    model, shape = models()[name]
    model, x = model.double(), inputs(5, *shape)
    y, penalty = jacobian_frobenius(model, x, seed=0, projections=None)
    torch.testing.assert_close(y, model(x))
    expected = dense(model, x).square().sum() / 5
    torch.testing.assert_close(penalty, expected)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (
        torch.autograd.grad(v, parameters, allow_unused=True, materialize_grads=True) for v in (penalty, expected)
    )
    torch.testing.assert_close(ours, theirs)


def predicted_variance(M, k):
    """Of the estimate by k orthonormal directions, for matrices M ``(m, C, C)``."""
    C = M.shape[1]
    trace, square = M.diagonal(dim1=1, dim2=2).sum(1), M.square().sum((1, 2))
    alone = 2 * C / (C + 2) * (square - trace.square() / C) * (C - k) / max(1, C - 1) / k
    return float(alone.sum()) / len(M) ** 2


def check_unbiased(values, true, variance):
    """The mean of independent estimates, and their variance, against the formula."""
    n = len(values)
    assert abs(float(values.mean()) - true) < 4 * math.sqrt(variance / n)
    # the sample variance of a bounded quantity: its own standard error from the fourth moment
    centred = (values - true).square()
    assert abs(float(centred.mean()) - variance) < 4.5 * float(centred.std()) / math.sqrt(n)


@pytest.mark.parametrize("projections", [1, 2, 4])
def test_the_estimate_is_unbiased_and_has_the_variance_of_the_formula(projections):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5)).double(), inputs(4, 3)
    J = dense(model, x).detach()
    values = torch.stack(
        [jacobian_frobenius(model, x, seed=s, projections=projections)[1].detach() for s in range(600)]
    )
    true = float(J.square().sum()) / 4
    check_unbiased(values, true, predicted_variance(J @ J.transpose(1, 2), projections))


def test_the_gradient_is_unbiased_too():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double(), inputs(2, 3)
    (true,) = torch.autograd.grad(dense(model, x).square().sum() / 2, [model[0].weight])
    rows = [torch.autograd.grad(jacobian_frobenius(model, x, seed=s)[1], [model[0].weight])[0] for s in range(500)]
    found = torch.stack(rows)
    error = found.std(0) / math.sqrt(len(rows))
    assert float(((found.mean(0) - true) / error).abs().max()) < 4.5  # 12 numbers


def test_the_same_seed_gives_the_same_number_and_another_seed_another():
    model, x = models()["mlp"][0].double(), inputs(5, 4)
    first, second, third = (jacobian_frobenius(model, x, seed=s)[1] for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_the_identity_has_no_variance():
    model = nn.Linear(6, 6, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(2 * torch.linalg.qr(inputs(6, 6))[0])
    for s in range(5):
        assert float(jacobian_frobenius(model, inputs(3, 6), seed=s)[1].detach()) == pytest.approx(24.0)


# --- the nuclear norm -------------------------------------------------------------------------------------------------


def test_the_product_form_is_the_sum_of_both_norms():
    torch.manual_seed(0)
    h = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()
    g = nn.Sequential(nn.Linear(3, 5), nn.Softplus()).double()
    x = inputs(6, 4)
    y, penalty = jacobian_nuclear(h, g, x, seed=0, projections=None)
    torch.testing.assert_close(y, g(h(x)))
    expected = (dense(h, x).square().sum() + dense(g, h(x)).square().sum()) / 12
    torch.testing.assert_close(penalty, expected)
    parameters = [*h.parameters(), *g.parameters()]  # the gradient reaches h through the point of g's Jacobian
    pairs = zip(torch.autograd.grad(penalty, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def test_it_bounds_the_nuclear_norm_and_equals_it_for_balanced_factors():
    x = inputs(3, 4)
    M = inputs(5, 4, seed=1)
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    nuclear = float(S.sum())
    for factor, tight in ((1.0, True), (1.7, False)):
        h, g = nn.Linear(4, 4, bias=False).double(), nn.Linear(4, 5, bias=False).double()
        with torch.no_grad():
            h.weight.copy_(factor * S.sqrt()[:, None] * Vh)
            g.weight.copy_(U * S.sqrt() / factor)
        value = float(jacobian_nuclear(h, g, x, seed=0, projections=None)[1].detach())
        assert (value == pytest.approx(nuclear)) == tight
        assert value >= nuclear - 1e-9


def test_its_estimate_is_unbiased_and_its_two_terms_are_independent():
    torch.manual_seed(0)
    h, g, x = nn.Linear(4, 4).double(), nn.Linear(4, 4).double(), inputs(3, 4)
    values = torch.stack([jacobian_nuclear(h, g, x, seed=s)[1].detach() for s in range(600)])
    J = torch.stack([h.weight.detach()] * 3), torch.stack([g.weight.detach()] * 3)
    true = sum(float(j.square().sum()) for j in J) / 6
    variance = sum(predicted_variance(j @ j.transpose(1, 2), 1) for j in J) / 4
    check_unbiased(values, true, variance)


# --- asymmetry --------------------------------------------------------------------------------------------------------


def field(n=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n, 6), nn.Tanh(), nn.Linear(6, n)).double()


@pytest.mark.parametrize("route", ["forward", "reverse"])
def test_all_directions_give_the_dense_asymmetry_and_its_gradient(route):
    f, z = field(), inputs(5, 4)
    y, penalty = jacobian_asymmetry(f, z, seed=0, probes=None, route=route)
    torch.testing.assert_close(y, f(z))
    J = dense(f, z)
    expected = (J - J.transpose(1, 2)).square().sum() / 5
    torch.testing.assert_close(penalty, expected)
    parameters = [p for p in f.parameters() if p.shape != (4,)]
    ours, theirs = (torch.autograd.grad(v, parameters) for v in (penalty, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("probes", [1, 3])
def test_the_asymmetry_is_unbiased_and_has_the_variance_of_the_formula(probes):
    f, z = field(), inputs(3, 4)
    J = dense(f, z).detach()
    A = J - J.transpose(1, 2)
    values = torch.stack([jacobian_asymmetry(f, z, seed=s, probes=probes)[1].detach() for s in range(300)])
    check_unbiased(values, float(A.square().sum()) / 3, predicted_variance(A.transpose(1, 2) @ A, probes))


@pytest.mark.parametrize("route", ["forward", "reverse"])
def test_a_gradient_field_has_no_asymmetry(route):
    W = inputs(4, 4, seed=2)

    def slope(z):  # of sum log cosh(W z)
        return torch.tanh(z @ W.T) @ W

    for s in range(3):
        assert float(jacobian_asymmetry(slope, inputs(5, 4), seed=s, route=route)[1].detach()) < 1e-25


def test_the_state_stays_connected_where_it_has_a_graph():
    f, z = field(), inputs(5, 4)
    w = torch.ones((), dtype=F64, requires_grad=True)
    J = dense(f, w * z)
    (expected,) = torch.autograd.grad((J - J.transpose(1, 2)).square().sum() / 5, [w])
    penalty = jacobian_asymmetry(f, w * z, seed=0, probes=None)[1]
    torch.testing.assert_close(torch.autograd.grad(penalty, [w])[0], expected)


# --- inside training loops --------------------------------------------------------------------------------------------


def test_a_training_loop_lowers_the_norm_and_leaves_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    x, y = inputs(64, 4).float(), torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    state = torch.get_rng_state()
    first = float(jacobian_frobenius(model.eval(), x, seed=0, projections=None)[1].detach())
    assert torch.equal(state, torch.get_rng_state())  # the seed is the penalty's own
    model.train()
    for step in range(60):
        optimizer.zero_grad()
        outputs, penalty = jacobian_frobenius(model, x, seed=step)
        (nn.functional.cross_entropy(outputs, y) + 0.5 * penalty).backward()
        optimizer.step()
    last = float(jacobian_frobenius(model.eval(), x, seed=0, projections=None)[1].detach())
    assert last < 0.5 * first
    assert x.grad is None


def test_dropout_leaves_out_the_same_units_in_both():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2, bias=False)).double(), inputs(3, 4)
    with torch.no_grad():
        model[0].bias.zero_()
    y, penalty = jacobian_frobenius(model, x, seed=0, projections=None)
    (J,) = torch.autograd.grad(penalty, [model[2].weight], retain_graph=True)
    (own,) = torch.autograd.grad(y.sum(), [model[2].weight])
    # a unit that is left out in every example gets no gradient from either
    assert torch.equal((J == 0).all(0), (own == 0).all(0))
    # the model is linear and homogeneous given the masks: J x = y
    assert float(penalty.detach()) * float(x.square().sum(1).max()) >= float(y.detach().square().sum(1).mean()) - 1e-9


def test_batch_normalization_in_training_mode_is_refused_or_taken_whole():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh()).double(), inputs(3, 4)
    with pytest.raises(ValueError, match=r"'1' .*normalizes by the statistics of the batch"):
        jacobian_frobenius(model, x, seed=0)
    with pytest.raises(ValueError, match="coupled=True"):
        jacobian_nuclear(model, nn.Linear(5, 2).double(), x, seed=0)
    whole = torch.autograd.functional.jacobian(lambda z: model(z), x)  # (3, 5, 3, 4)
    true = float(whole.square().sum()) / 3
    values = [float(jacobian_frobenius(model, x, seed=s, coupled=True)[1].detach()) for s in range(400)]
    values = torch.tensor(values, dtype=F64)
    assert abs(float(values.mean()) - true) < 4 * float(values.std()) / math.sqrt(400)
    exact = jacobian_frobenius(model, x, seed=0, projections=None, coupled=True)[1]
    assert exact.requires_grad


def test_without_gradients_the_number_is_the_same_and_has_no_graph():
    model, x = models()["mlp"][0].double(), inputs(5, 4)
    with torch.no_grad():
        y, penalty = jacobian_frobenius(model, x, seed=1)
    assert not y.requires_grad
    assert not penalty.requires_grad
    torch.testing.assert_close(penalty, jacobian_frobenius(model, x, seed=1)[1].detach())


def test_inputs_that_have_a_graph_keep_it():
    model, x = models()["mlp"][0].double(), inputs(5, 4)
    w = torch.ones((), dtype=F64, requires_grad=True)
    penalty = jacobian_frobenius(model, w * x, seed=0, projections=None)[1]
    (expected,) = torch.autograd.grad(dense(model, w * x).square().sum() / 5, [w])
    torch.testing.assert_close(torch.autograd.grad(penalty, [w])[0], expected)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m, x: jacobian_frobenius(m, x, seed=0, projections=4), ValueError, "between 1 and 3"),
        (lambda m, x: jacobian_frobenius(m, x, seed=0, projections=0), ValueError, "between 1 and 3"),
        (lambda m, x: jacobian_frobenius(m, x.long(), seed=0), ValueError, "floating tensor"),
        (lambda m, x: jacobian_frobenius(m, x[0], seed=0), ValueError, "floating tensor"),
        (lambda m, x: jacobian_frobenius(m, x[:0], seed=0), ValueError, "there must be examples"),
        (lambda m, x: jacobian_frobenius(nn.GRU(4, 3).double(), x, seed=0), TypeError, "must return a tensor"),
        (lambda m, x: jacobian_asymmetry(m, x, seed=0), ValueError, "state's shape"),
        (lambda m, x: jacobian_asymmetry(m, x, seed=0, route="both"), ValueError, "route must be"),
    ],
)
def test_what_does_not_fit_is_said(call, error, said):
    with pytest.raises(error, match=said):
        call(models()["mlp"][0].double(), inputs(5, 4))


def test_a_backward_without_a_derivative_is_refused():
    class Net(nn.Module):
        def forward(self, x):
            return Doubled.apply(x.tanh())

    with pytest.raises(NotDifferentiable, match="once_differentiable"):
        jacobian_frobenius(Net(), inputs(3, 4), seed=0)

    class Cut(nn.Module):
        def forward(self, x):
            return x.detach()

    with pytest.raises(NotDifferentiable, match="must depend on the inputs"):
        jacobian_frobenius(Cut(), inputs(3, 4), seed=0)


class Flattened(nn.Module):
    """Positions as rows, or only their mean: the outputs have other examples than the inputs."""

    def __init__(self, how):
        super().__init__()
        self.how, self.layer = how, nn.Linear(2, 2)

    def forward(self, x):
        y = self.layer(x.reshape(-1, 2))
        return {"rows": y, "mean": y.mean(0), "scalar": y.sum()}[self.how]


@pytest.mark.parametrize("how", ["rows", "mean", "scalar"])
def test_outputs_of_other_examples_than_the_inputs_are_refused(how):
    x = torch.randn(5, 4)
    with pytest.raises(ValueError, match="outputs must have the 5 examples of the inputs on axis 0, got shape"):
        jacobian_frobenius(Flattened(how), x, seed=0)
    if how != "scalar":
        with pytest.raises(ValueError, match="outputs must have the 5 examples of the inputs on axis 0, got shape"):
            jacobian_nuclear(nn.Linear(4, 4), Flattened(how), x, seed=0)


def test_in_inference_mode_it_says_so():
    with torch.inference_mode(), pytest.raises(NotDifferentiable, match=r"leave torch\.inference_mode"):
        jacobian_frobenius(nn.Linear(4, 3), torch.randn(5, 4), seed=0)
