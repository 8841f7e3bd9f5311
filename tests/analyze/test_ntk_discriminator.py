"""A discriminator in the kernel regime: matrix exponentials, finite differences, a kernel by another way, wide nets."""

import pytest
import scipy
import torch
from torch import nn

from frechet.analyze import ntk_discriminator, ntk_flow
from frechet.errors import NotDifferentiable

DOUBLE = torch.float64


class Features(nn.Module):
    """A model that is linear in its parameters, so that its kernel stays; its features are not linear in x."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.register_buffer("mix", torch.randn(2, 12, dtype=DOUBLE))
        self.weight = nn.Parameter(torch.randn(12, dtype=DOUBLE) / 4)

    def forward(self, x):
        return torch.tanh(x @ self.mix) @ self.weight


class Kinked(nn.Module):
    """The kernel's parametrization, in which the first layer counts as much as the last."""

    def __init__(self, width, activation):
        super().__init__()
        torch.manual_seed(0)
        self.A, self.v = (nn.Parameter(torch.randn(n, width, dtype=DOUBLE)) for n in (2, 1))
        self.b, self.activation = nn.Parameter(torch.randn(width, dtype=DOUBLE)), activation

    def forward(self, x):
        return self.activation(x @ self.A + self.b) @ self.v.T / self.A.shape[1] ** 0.5


def points(n, shift, seed):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) + shift


def net(width=6, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).double()


def kernel(model, x, z):
    """The tangent kernel by one backward pass a point, differentiable in the points."""
    rows = []
    for batch in (x, z):
        one = []
        for p in batch:
            g = torch.autograd.grad(model(p[None]).sum(), list(model.parameters()), create_graph=True)
            one.append(torch.cat([t.reshape(-1) for t in g]))
        rows.append(torch.stack(one))
    return rows[0] @ rows[1].T


def squared_discrepancy(model, real, fake):
    return kernel(model, real, real).mean() - 2 * kernel(model, real, fake).mean() + kernel(model, fake, fake).mean()


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("time", [0.0, 0.4, 30.0])
@pytest.mark.parametrize("loss", ["ipm", "least_squares"])
def test_of_a_model_with_a_kernel_that_stays_it_is_exact(loss, time, centered):
    """The flow of the parameters by a matrix exponential."""
    model, real, fake, new = Features(), points(5, 1.0, 0), points(3, -1.0, 1), points(4, 0.0, 2)
    found = ntk_discriminator(model, real, fake, loss=loss, time=time, centered=centered)
    features = lambda x: torch.tanh(x @ model.mix)  # noqa: E731
    P, w = features(torch.cat([real, fake])), torch.tensor([1 / 5] * 5 + [1 / 3] * 3, dtype=DOUBLE)
    signs, start = torch.tensor([1.0] * 5 + [-1.0] * 3, dtype=DOUBLE), model.weight.detach() * (not centered)
    if loss == "ipm":
        theta = start + time * P.T @ (w * signs)
    else:  # theta' = -2 P'W(P theta - y), as a linear system with one more coordinate that stays 1
        A = torch.zeros(13, 13, dtype=DOUBLE)
        A[:12, :12], A[:12, 12] = -2 * P.T @ (w[:, None] * P), 2 * P.T @ (w * signs)
        whole = torch.cat([start, torch.ones(1, dtype=DOUBLE)])
        theta = (torch.from_numpy(scipy.linalg.expm(time * A.numpy())) @ whole)[:12]
    assert torch.allclose(found.values(new), features(new) @ theta, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", ["ipm", "least_squares"])
def test_its_field_is_the_slope_of_its_values(loss):
    found = ntk_discriminator(net(), points(5, 1.0, 0), points(3, -1.0, 1), loss=loss, time=2.0, centered=False)
    z, h = points(4, 0.0, 2), 1e-5
    for i in range(2):
        e = torch.zeros(2, dtype=DOUBLE)
        e[i] = h
        slope = (found.values(z + e) - found.values(z - e)) / (2 * h)
        assert torch.allclose(found.field(z)[:, i], slope, rtol=1e-7, atol=1e-9)


def test_generated_points_follow_the_gradient_of_the_discrepancy():
    model, real, fake = net(), points(5, 1.0, 0), points(3, -1.0, 1).requires_grad_()
    square = squared_discrepancy(model, real, fake)
    (slope,) = torch.autograd.grad(square, fake)
    found = ntk_discriminator(model, real, fake, time=0.7)
    assert found.discrepancy == pytest.approx(float(square.detach()), rel=1e-12)
    assert torch.allclose(found.velocity(fake.detach()), -slope * 3 / 2 * 0.7, rtol=1e-10)


def test_the_generators_loss_of_least_squares():
    found = ntk_discriminator(net(), points(5, 1.0, 0), points(3, -1.0, 1), loss="least_squares", time=2.0)
    z = points(4, 0.0, 2)
    assert torch.allclose(found.velocity(z), 2 * (1 - found.values(z))[:, None] * found.field(z))


def trained(width, seed):
    """How far a trained network of width w is from its prediction, over how far it moved."""
    torch.manual_seed(seed)
    hidden, out = nn.Linear(2, width).double(), nn.Linear(width, 1, bias=False).double()

    class Wide(nn.Module):
        """The tangent kernel's parametrization."""

        def __init__(self):
            super().__init__()
            self.A, self.v = nn.Parameter(torch.randn_like(hidden.weight)), nn.Parameter(torch.randn_like(out.weight))

        def forward(self, x):
            return torch.relu(x @ self.A.T) @ self.v.T / width**0.5

    model, real, fake, new = Wide(), points(6, 1.0, 0), points(6, -1.0, 1), points(8, 0.0, 2)
    predicted = ntk_discriminator(model, real, fake, loss="least_squares", time=0.5, centered=False).values(new)
    before = model(new).detach()[:, 0]
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3)
    for _ in range(250):
        optimizer.zero_grad()
        ((model(real) - 1).square().mean() + (model(fake) + 1).square().mean()).backward()
        optimizer.step()
    after = model(new).detach()[:, 0]
    return float((after - predicted).norm() / (after - before).norm())


def test_wider_discriminators_follow_it_better():
    narrow, wide = (sum(trained(w, s) for s in range(3)) / 3 for w in (16, 1024))
    assert wide < 0.1
    assert wide < narrow / 3


def test_the_flow_brings_generated_points_to_the_data():
    real, fake = points(12, 2.0, 0), points(12, -2.0, 1)
    found = ntk_flow(net(64), real, fake, rate=0.3, steps=40)
    assert found.discrepancies.shape == (41,)
    assert bool((found.discrepancies[1:] < found.discrepancies[:-1]).all())
    assert float(found.discrepancies[-1]) < 0.05 * float(found.discrepancies[0])
    assert float((found.points.mean(0) - real.mean(0)).norm()) < 0.3 * float((fake.mean(0) - real.mean(0)).norm())


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU(), nn.Softplus(), nn.SiLU()])
def test_smooth_activations_have_a_gradient_that_explains_the_values(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), activation, nn.Linear(32, 32), activation, nn.Linear(32, 1)).double()
    assert ntk_discriminator(model, points(9, 1.0, 0), points(9, -1.0, 1)).missed < 1e-3


@pytest.mark.parametrize("activation", [torch.relu, nn.functional.leaky_relu, nn.functional.hardtanh])
@pytest.mark.parametrize("width", [16, 256])
def test_where_the_kernel_jumps_there_is_no_gradient_but_there_are_values(activation, width):
    model = Kinked(width, activation)
    found = ntk_discriminator(model, points(9, 1.0, 0), points(9, -1.0, 1))
    assert found.values(points(3, 0.0, 2)).shape == (3,)
    with pytest.raises(NotDifferentiable, match="the kernel jumps where a ReLU switches; use a smooth activation"):
        found.field(points(3, 0.0, 2))
    with pytest.raises(NotDifferentiable, match="the kernel jumps"):
        ntk_flow(model, points(9, 1.0, 0), points(9, -1.0, 1), rate=0.1, steps=1)


def test_bad_arguments():
    real, fake = points(3, 0.0, 0), points(2, 0.0, 1)
    with pytest.raises(ValueError, match="loss must be 'ipm' or 'least_squares'"):
        ntk_discriminator(net(), real, fake, loss="hinge")
    with pytest.raises(ValueError, match="time must be at least 0"):
        ntk_discriminator(net(), real, fake, time=-1.0)
    with pytest.raises(ValueError, match="real and fake must be points of one shape"):
        ntk_discriminator(net(), real, fake[:, :1])
    with pytest.raises(ValueError, match="real and fake must be points of one shape"):
        ntk_discriminator(net(), real, fake[:0])
    with pytest.raises(ValueError, match="one output a point, got 10 for 5"):
        ntk_discriminator(nn.Linear(2, 2).double(), real, fake)
    coupled = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).double()
    with pytest.raises(ValueError, match="ntk_discriminator"):
        ntk_discriminator(coupled, real, fake)
    with pytest.raises(ValueError, match="steps must be at least 0 and rate positive"):
        ntk_flow(net(), real, fake, rate=0.0, steps=1)
