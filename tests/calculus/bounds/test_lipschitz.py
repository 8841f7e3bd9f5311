"""Certified Lipschitz constants: lower <= exact <= linear bounds <= intervals, rounding included."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import nn

from frechet.calculus.bounds import _branch as branch
from frechet.calculus.bounds import jacobian_bounds, local_lipschitz
from frechet.calculus.bounds._elementwise import Factor, Lines
from frechet.linalg import Status

F64 = torch.float64
NORMS = [math.inf, 2]


def mlp(sizes, seed, act=nn.ReLU):
    torch.manual_seed(seed)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers[:-1])


def by_patterns(net, x, radius, norm):
    """The exact constant of a ReLU network over a box: the largest norm over all patterns of a full cell."""
    layers = [m for m in net if isinstance(m, nn.Linear)]
    weights = [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in layers]
    centre, best = x.double().numpy(), 0.0

    def full(rows):
        if not rows:
            return True
        A = np.array([[*a, np.abs(a).sum() + 1e-12] for a, _ in rows])  # a x + t |a| <= c for a margin t
        c = np.array([c for _, c in rows])
        box = [*((v - radius, v + radius) for v in centre), (0, 1)]
        found = linprog([*(0.0 for _ in centre), -1.0], A_ub=A, b_ub=c, bounds=box)
        return found.status == 0 and found.x[-1] > 1e-9

    def walk(k, A, b, rows):
        nonlocal best
        W, w = weights[k]
        A, b = W @ A, W @ b + w
        if k == len(weights) - 1:
            best = max(best, np.abs(A).sum(1).max() if norm == math.inf else np.linalg.norm(A, 2))
            return

        def unit(i, rows, s):
            if full(rows):
                if i == len(b):
                    walk(k + 1, A * np.array(s)[:, None], b * np.array(s), rows)
                else:
                    unit(i + 1, [*rows, (-A[i], b[i])], [*s, 1.0])
                    unit(i + 1, [*rows, (A[i], -b[i])], [*s, 0.0])

        unit(0, rows, [])

    walk(0, np.eye(len(centre)), np.zeros(len(centre)), [])
    return best


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("sizes", "seed"), [((3, 4, 4, 2), 0), ((2, 6, 1), 1), ((3, 5, 4, 1), 2), ((2, 4, 3, 3), 3)])
def test_exact_lies_between_and_linear_bounds_are_below_intervals(sizes, seed, norm):
    net, x, radius = mlp(sizes, seed), torch.randn(1, sizes[0], generator=torch.Generator().manual_seed(seed)), 0.7
    if norm == 2:  # the enumeration is over boxes: a ball inside, and one around, are on either side of it
        exact = by_patterns(net, x[0], radius / math.sqrt(sizes[0]), norm)
        assert exact <= float(local_lipschitz(net, x, radius, seed=0, norm=2, max_domains=1).upper)
        exact = by_patterns(net, x[0], radius, norm)
        assert float(local_lipschitz(net, x, radius, seed=0, norm=2, max_domains=50).lower) <= exact * (1 + 1e-12)
        return
    exact = by_patterns(net, x[0], radius, norm)
    searched = local_lipschitz(net, x, radius, seed=0, max_domains=400)
    once = local_lipschitz(net, x, radius, seed=0, max_domains=1)
    wide = local_lipschitz(net, x, radius, seed=0, max_domains=1, linear=False)
    ends = [float(t) for t in (searched.lower, exact, searched.upper, once.upper, wide.upper)]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(ends)), ends
    assert searched.converged
    assert ends[2] <= 1.0101 * exact


def test_a_relaxation_that_is_too_tight_fails_the_law(monkeypatch):
    def broken(self, l, u):
        lines = honest(self, l, u)
        return Lines(lines.upper * 0.7, lines.upper_shift * 0.7, lines.lower * 0.7, lines.lower_shift * 0.7)

    honest = Factor.lines
    net, x = mlp((3, 4, 4, 2), 0), torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
    exact = by_patterns(net, x[0], 0.7, math.inf)
    assert float(local_lipschitz(net, x, 0.7, seed=0, max_domains=1).upper) >= exact
    monkeypatch.setattr(Factor, "lines", broken)
    assert float(local_lipschitz(net, x, 0.7, seed=0, max_domains=1).upper) < exact


# --- architectures ----------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.a, self.b, self.out, self.act = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 2), act

    def forward(self, x):
        x = x + self.b(self.act(self.a(x)))
        return self.out(self.act(x - 0.5 * self.b(self.act(self.a(x)))))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.l = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(8, 3)
        self.register_buffer("mean", torch.tensor(0.3))

    def forward(self, x):
        x = (x - self.mean) / 0.7
        x = F.relu(self.c(x))
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3)
        x = torch.flatten(x, 1)
        x = torch.cat([x[:, :4], 2 * x[:, 4:].tanh()], 1)
        return torch.sigmoid(self.l(x).clamp(-1.0, 1.0)) + x.mean(1, keepdim=True)


def images(seed=0):
    return torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def normalized():
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 3),
    )  # fmt: skip
    net(torch.randn(20, 1, 4, 4))
    return net.eval()


ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(0.1), nn.ReLU6(), nn.Hardtanh(-0.5, 0.7), nn.Tanh(), nn.Sigmoid(),
    nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Softplus(), nn.ELU(), nn.CELU(0.5), nn.PReLU(),
]  # fmt: skip


def nets():
    for act in ACTIVATIONS:
        torch.manual_seed(1)
        yield f"residual {act}", Residual(act), torch.randn(1, 4, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(2)
    yield "functional", Functional(), images()
    yield "normalized", normalized(), images(1)
    pooled = nn.Sequential(nn.Conv2d(1, 3, 3, dilation=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 2))
    yield "maximum pooling", pooled, images(2)
    averaged = nn.Sequential(nn.AvgPool2d(2, padding=1), nn.ReLU(), nn.PixelUnshuffle(3), nn.Flatten(), nn.Linear(9, 2))
    yield "average pooling", averaged, images(3)
    line = nn.Sequential(nn.Conv1d(2, 3, 2, stride=2), nn.GELU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(6, 2))
    yield "one dimension", line, torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(4))


NETS = {name: (net, x) for name, net, x in nets()}


def jacobians(net, x, radius, norm, count=200):
    """Jacobians (count, *out, *in) at random points of the ball."""
    draw = torch.Generator().manual_seed(7)
    t = 2 * torch.rand(count, *x.shape[1:], generator=draw, dtype=F64) - 1
    if norm == 2:
        t = t / t.flatten(1).norm(dim=1).view(-1, *(1 for _ in x.shape[1:])).clamp(min=1)
    points = x.double() + radius * t
    state = {k: v.double() for k, v in net.state_dict().items()}
    points.requires_grad_()
    out = torch.func.functional_call(net, state, (points,)).flatten(1)
    rows = [torch.autograd.grad(y.sum(), points, retain_graph=True)[0] for y in out.unbind(1)]
    return torch.stack(rows, 1)


def assert_holds_jacobians(net, x, radius, norm):
    J, found = jacobians(net, x, radius, norm), jacobian_bounds(net, x, radius, norm=norm)
    assert bool((found.low <= J).all())
    assert bool((found.high >= J).all())
    return J


# the Euclidean norm differs in what is done with the Jacobian alone, so that a few networks do
CASES = [(name, math.inf) for name in NETS] + [(name, 2) for name in list(NETS)[::4]]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_bounds_hold_at_points(name, norm):
    net, x = NETS[name]
    radius = 0.3
    J = assert_holds_jacobians(net, x, radius, norm).flatten(2)
    found = local_lipschitz(net, x, radius, seed=0, norm=norm, max_domains=3)
    largest = J.abs().sum(-1).max() if norm == math.inf else torch.linalg.matrix_norm(J, 2).max()
    assert float(largest) <= float(found.upper)
    assert 0 < float(found.lower) <= float(found.upper)
    wide = local_lipschitz(net, x, radius, seed=0, norm=norm, max_domains=1, linear=False)
    once = local_lipschitz(net, x, radius, seed=0, norm=norm, max_domains=1)
    assert float(found.upper) <= float(once.upper) <= float(wide.upper)


@pytest.mark.parametrize("name", ["residual ReLU()", "residual Tanh()", "functional"])
def test_the_lower_bound_is_reached_at_its_point(name):
    net, x = NETS[name]
    found = local_lipschitz(net, x, 0.3, seed=0, max_domains=8)
    point = found.points[0]
    assert bool(((point - x[0]).abs() <= 0.3).all())
    state = {k: v.double() for k, v in net.state_dict().items()}
    J = torch.func.jacrev(lambda p: torch.func.functional_call(net, state, (p[None],))[0])(point)
    assert float(J.flatten(1).abs().sum(1).max()) == pytest.approx(float(found.lower), rel=1e-12)


def test_a_ball_of_radius_going_to_zero_gives_the_norm_at_the_point():
    net, x = NETS["residual Tanh()"]
    J = jacobians(net, x, 0.0, 2, count=1)[0]
    for norm, value in ((2, torch.linalg.matrix_norm(J, 2)), (math.inf, J.abs().sum(-1).max())):
        found = local_lipschitz(net, x, 1e-6, seed=0, norm=norm)
        assert found.converged
        assert float(found.lower) == pytest.approx(float(value), rel=1e-4)
        assert float(found.upper) == pytest.approx(float(value), rel=1e-4)


def test_examples_are_taken_alone_and_outputs_combined():
    net = mlp((3, 5, 3), 4)
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    together = local_lipschitz(net, x, 0.2, seed=0, max_domains=20)
    alone = [local_lipschitz(net, p[None], 0.2, seed=0, max_domains=20) for p in x]
    assert together.upper.tolist() == [float(a.upper) for a in alone]
    margin = local_lipschitz(net, x[:1], 0.2, seed=0, outputs=torch.tensor([[1.0, -1.0, 0.0]]))
    last = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[1.0, -1.0, 0.0]]))
    same = local_lipschitz(nn.Sequential(net, last), x[:1], 0.2, seed=0)
    assert float(margin.upper) == pytest.approx(float(same.upper), rel=1e-12)


def test_more_domains_never_widen_and_the_status_says_how_it_ended():
    net, x = NETS["residual GELU(approximate='none')"]
    ends = [local_lipschitz(net, x, 0.5, seed=0, max_domains=n, rtol=0.0) for n in (1, 3, 11, 41)]
    assert all(float(b.upper) <= float(a.upper) for a, b in itertools.pairwise(ends))
    assert float(ends[-1].upper) < float(ends[0].upper)
    assert ends[-1].status is Status.MAX_ITERATIONS
    assert "domains" in ends[-1].message
    assert "between" in repr(ends[-1])


# --- rounding ---------------------------------------------------------------------------------------------------------


def exact_linear(net):
    """The exact constant of two affine maps, in rationals."""
    A, B = ([[Fraction(float(v)) for v in row] for row in m.weight.detach()] for m in (net[0], net[1]))
    J = [[sum(b * A[k][j] for k, b in enumerate(row)) for j in range(len(A[0]))] for row in B]
    return max(sum(map(abs, row)) for row in J)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e20])
def test_a_bound_is_none_of_a_rounded_network(scale):
    naive_is_below = 0
    for seed in range(20):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 2)).double()
        with torch.no_grad():
            net[0].weight.mul_(scale).mul_(10 ** torch.linspace(-3, 3, 6, dtype=F64))
        exact = exact_linear(net)
        found = local_lipschitz(net, torch.randn(1, 6, dtype=F64), 1.0, seed=0)
        assert Fraction(float(found.lower)) <= exact <= Fraction(float(found.upper))
        assert float(found.upper / found.lower) < 1 + 1e-11
        naive_is_below += Fraction(float((net[1].weight @ net[0].weight).detach().abs().sum(1).max())) < exact
    assert naive_is_below > 3  # what the product of matrices gives would often be no bound


# --- what is refused --------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class InPlace(nn.Module):
    def forward(self, x):
        x = 1.0 * x
        y = F.relu(x, inplace=True)
        return y + x


REFUSED = {
    "LayerNorm": (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "LayerNorm"),
    "Softmax": (nn.Softmax(1), "Softmax"),
    "SELU": (nn.SELU(), "SELU"),
    "Bilinear": (nn.Sequential(nn.Linear(3, 3), nn.Softmin(1)), "Softmin"),
    "square": (type("Square", (nn.Module,), {"forward": lambda self, x: x * x})(), "a product of two vectors"),
    "exp": (type("Exp", (nn.Module,), {"forward": lambda self, x: torch.exp(x)})(), "exp"),
    "branch": (Branching(), "without branches"),
    "in place": (InPlace(), "changes in place"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bound_is_refused_by_name(name):
    model, words = REFUSED[name]
    with pytest.raises(TypeError, match=f"(?i){words}"):
        local_lipschitz(model, torch.ones(1, 3), 0.1, seed=0)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(3)])
def test_training_mode_is_refused(layer):
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        local_lipschitz(nn.Sequential(nn.Linear(3, 3), layer), torch.ones(1, 3), 0.1, seed=0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"radius": 0.0}, ValueError, "radius must be positive"),
        ({"radius": math.inf}, ValueError, "radius must be positive"),
        ({"norm": 1}, ValueError, "norm must be 2 or math.inf"),
        ({"x": torch.ones(3)}, TypeError, "x must be a real tensor"),
        ({"x": torch.full((1, 3), math.nan)}, ValueError, "x must be finite"),
        ({"max_domains": 0}, ValueError, "max_domains must be an integer"),
        ({"outputs": torch.ones(2, 5)}, ValueError, "rows of weights"),
        ({"rtol": -1.0}, ValueError, "rtol must be"),
    ],
)
def test_wrong_arguments(change, error, words):
    given = {"model": nn.Linear(3, 2), "x": torch.ones(1, 3), "radius": 0.1, "seed": 0} | change
    with pytest.raises(error, match=words):
        local_lipschitz(**given)


def test_the_model_is_left_as_it_was():
    net, x = mlp((3, 4, 2), 0), torch.ones(1, 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    local_lipschitz(net, x, 0.1, seed=0)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in net.parameters())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert branch.TOGETHER > 1


def test_an_output_that_does_not_depend_on_the_input_has_the_constant_zero():
    class Constant(nn.Module):
        def forward(self, x):
            return 0.0 * x[:, :1]

    found = local_lipschitz(Constant(), torch.ones(1, 3), 0.1, seed=0)
    assert float(found.upper) < 1e-200
