"""Sparsemax and entmax: the optimum of their definition, exact derivatives, ties, masked scores, and losses."""

import pytest
import torch
from torch import nn

from frechet import Objective, gauss_newton, hessian
from frechet.objective.criteria import Entmax, entmax, entmax_loss, sparsemax

F64 = torch.float64
ALPHAS = [1.0, 1.1, 1.3, 1.5, 1.8, 2.0]


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_probabilities_meet_the_conditions_of_the_optimum(alpha, scale):
    z = drawn(50, 7, scale=scale)
    p = entmax(z, alpha)
    torch.testing.assert_close(p.sum(-1), torch.ones(50, dtype=F64), rtol=0, atol=1e-12)
    assert bool((p >= 0).all())
    if alpha == 1:
        torch.testing.assert_close(p, z.softmax(-1))
        return
    # z_j - p_j^(a-1)/(a-1) is one number on the support, and no larger z is left out
    level = torch.where(p > 0, z - p ** (alpha - 1) / (alpha - 1), torch.nan)
    middle = level.nanmean(-1, keepdim=True)
    assert float((level - middle).abs().nan_to_num().max()) < 1e-10 * (1 + scale)
    assert bool((z[p == 0] <= middle.expand_as(z)[p == 0] + 1e-10).all())


def projected(z):
    """The projection on the simplex by bisection."""
    low, high = z.min() - 1, z.max()
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if (z - t).clamp(min=0).sum() > 1 else (low, t)
    return (z - low).clamp(min=0)


def test_sparsemax_is_the_projection():
    for z in drawn(30, 6, seed=3):
        torch.testing.assert_close(sparsemax(z), projected(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_derivatives_are_exact_in_both_modes_and_twice(alpha):
    z = drawn(3, 5, seed=1, scale=0.7).requires_grad_()
    f = lambda z: entmax(z, alpha)  # noqa: E731
    assert torch.autograd.gradcheck(f, z, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, z)
    u, v = drawn(3, 5, seed=2), drawn(3, 5, seed=3)
    _, ju = torch.func.jvp(f, (z,), (u,))
    (jv,) = torch.autograd.grad(f(z), z, v)
    torch.testing.assert_close((ju * v).sum(), (u * jv).sum())


@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0])
def test_third_derivatives_along_a_line_agree_with_differences(alpha):
    z, v = drawn(5, seed=4, scale=0.3), drawn(5, seed=5)

    def along(t):
        return (entmax(z + t * v, alpha) * v).sum()

    def nested(t, k):
        return torch.func.grad(lambda s: nested(s, k - 1))(t) if k else along(t)

    t, h = torch.tensor(0.0, dtype=F64), 1e-4
    third, ahead, behind = nested(t, 3), nested(t + h, 2), nested(t - h, 2)
    torch.testing.assert_close(third, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.1, 1.5, 2.0])
def test_ties_and_masked_scores(alpha):
    equal = entmax(torch.zeros(4, dtype=F64), alpha)
    torch.testing.assert_close(equal, torch.full((4,), 0.25, dtype=F64))
    z = torch.tensor([1.0, 1.0, -torch.inf, 0.3, -1e300], dtype=F64, requires_grad=True)
    p = entmax(z, alpha)
    q = p.detach()
    assert q[0] == q[1]
    assert float(q[2]) == 0.0 == float(q[4])
    (g,) = torch.autograd.grad((p * torch.arange(5, dtype=F64)).sum(), z)
    assert bool(g.isfinite().all())
    assert float(g[2]) == 0.0
    # just at the threshold: p is zero there, and the derivative is the one without that entry
    z = torch.tensor([1.0, 0.0], dtype=F64)
    J = torch.func.jacrev(lambda z: sparsemax(z))(z)
    assert J.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert sparsemax(z).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_sums_to_one(dtype):
    p = Entmax(1.5, dim=1)(drawn(4, 9, 3).to(dtype))
    assert p.dtype is dtype
    assert float((p.float().sum(1) - 1).abs().max()) < 4 * torch.finfo(dtype).eps * 9


def test_any_axis_and_vmap():
    z = drawn(2, 5, 3)
    torch.testing.assert_close(entmax(z, 1.5, 1), entmax(z.movedim(1, -1), 1.5).movedim(-1, 1))
    torch.testing.assert_close(torch.func.vmap(sparsemax)(z), sparsemax(z))


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.1, 1.5, 2.0])
@pytest.mark.parametrize("soft", [False, True])
def test_losses_are_fenchel_young(alpha, soft):
    z, criterion = drawn(6, 4, seed=1).requires_grad_(), entmax_loss(alpha)
    y = entmax(drawn(6, 4, seed=7), alpha) if soft else torch.tensor([0, 1, 2, 3, -100, 1])
    terms = criterion.terms(z, y)
    assert bool((terms >= -1e-12).all())
    (g,) = torch.autograd.grad(terms.sum(), z, create_graph=True)
    torch.testing.assert_close(g, criterion.score(z, y))
    u = drawn(6, 4, seed=9)
    (Hu,) = torch.autograd.grad((g * u).sum(), z)
    torch.testing.assert_close(criterion.hessian_product(z, y, u), Hu)
    assert torch.autograd.gradcheck(lambda z: criterion.terms(z, y), z)
    assert float(criterion.count(y)) == (6 if soft else 5)
    if soft:  # zero at the scores of the target
        at = torch.where(y > 0, y ** (alpha - 1) / (alpha - 1), -10.0)
        assert float(criterion.terms(at, y).abs().max()) < 1e-12


def test_the_loss_of_sparsemax_with_two_classes_is_hubers():
    t = torch.linspace(-3, 3, 61, dtype=F64)
    found = entmax_loss(2.0).terms(torch.stack([t, torch.zeros_like(t)], 1), torch.zeros(61, dtype=torch.long))
    expected = torch.where(t >= 1, 0.0, torch.where(t <= -1, -t, (t - 1) ** 2 / 4))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_an_objective_takes_it_and_the_fisher_refuses():
    torch.manual_seed(0)
    net = nn.Linear(3, 4).double()
    data = [(drawn(8, 3), torch.arange(8) % 4)]
    objective = Objective(net, entmax_loss(), data)
    H, G = hessian(objective).dense(), gauss_newton(objective).dense()
    torch.testing.assert_close(H, G)  # linear in the parameters
    assert float(torch.linalg.eigvalsh(G).min()) > -1e-12
    from frechet import fisher

    with pytest.raises(ValueError, match="must be a likelihood"):
        fisher(objective).dense()


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"alpha must lie in \[1, 2\]"):
        entmax(drawn(3), 2.5)
    with pytest.raises(ValueError, match=r"alpha must lie in \(1, 2\]"):
        entmax_loss(1.0)
    with pytest.raises(TypeError, match="real scores"):
        sparsemax(torch.arange(3))
    with pytest.raises(ValueError, match="targets must lie between"):
        entmax_loss().terms(drawn(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="targets must have shape"):
        entmax_loss().terms(drawn(2, 3), torch.tensor([0]))
