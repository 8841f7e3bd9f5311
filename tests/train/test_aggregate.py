import numpy as np
import pytest
import scipy.optimize
import torch

from frechet.errors import NonFinite
from frechet.train import cagrad, cosines, dual_cone, dual_projection, imtl, min_norm, nash, pcgrad, upgrad

F64 = torch.float64
EXACT = {
    "upgrad": upgrad,
    "dual_projection": dual_projection,
    "min_norm": min_norm,
    "imtl": imtl,
    "nash": nash,
    "cagrad": lambda G: cagrad(G, c=0.5),
}


def rows(seed: int, m: int | None = None, d: int | None = None) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    m = int(torch.randint(2, 12, (1,), generator=g)) if m is None else m
    d = int(torch.randint(2, 25, (1,), generator=g)) if d is None else d
    return torch.randn(m, d, generator=g, dtype=F64)


@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("aggregate", [upgrad, dual_projection])
def test_no_gradient_conflicts_with_the_update_at_any_ratio_of_norms(aggregate, ratio):
    worst, zero = 0.0, 0
    for seed in range(120):
        J = rows(seed)
        g = torch.Generator().manual_seed(10_000 + seed)
        if seed % 3 == 0:  # nearly opposite
            J[0] = -J[1] + 0.05 * torch.randn(J.shape[1], generator=g, dtype=F64)
        J = J * ratio ** (2 * torch.rand(len(J), 1, generator=g, dtype=F64) - 1)
        update = J.T @ aggregate(J @ J.T)
        length = float(update.norm())
        if length == 0:
            zero += 1
            continue
        worst = min(worst, float(((J @ update) / (J.norm(dim=1) * length)).min()))
    assert worst >= -1e-7
    assert zero < 60


def test_an_update_without_conflict_is_the_mean():
    J = rows(0, 5, 9).abs()
    for aggregate in (upgrad, dual_projection):
        torch.testing.assert_close(aggregate(J @ J.T), torch.full((5,), 0.2, dtype=F64))
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0], dtype=F64)
    torch.testing.assert_close(upgrad(J @ J.T, weights), weights)


def test_the_update_is_linear_in_the_length_of_each_gradient():
    J = rows(4, 5, 9)
    c = torch.tensor([1e-3, 1.0, 50.0, 1e4, 0.3], dtype=F64)

    def update(scale):
        K = scale[:, None] * J
        return K.T @ upgrad(K @ K.T)

    one = torch.ones_like(c)
    torch.testing.assert_close(update(c + one), update(c) + update(one), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EXACT)
def test_the_order_of_the_gradients_does_not_matter(name):
    J, order = rows(7, 6, 12), torch.tensor([3, 0, 5, 1, 2, 4])
    torch.testing.assert_close(EXACT[name]((J @ J.T)[order][:, order]), EXACT[name](J @ J.T)[order], rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_the_unit_of_the_losses_does_not_matter(name, unit):
    J = rows(8, 6, 12)
    expected = EXACT[name](J @ J.T) / (unit if name == "nash" else 1.0)
    torch.testing.assert_close(EXACT[name](unit**2 * J @ J.T), expected, rtol=1e-7, atol=0)


def test_gradients_that_cancel_leave_no_direction():
    g = rows(1, 1, 8)[0]
    J = torch.stack([g, -g])
    for aggregate in (upgrad, dual_projection):
        assert aggregate(J @ J.T).tolist() == [0.0, 0.0]
    torch.testing.assert_close(min_norm(J @ J.T), torch.tensor([0.5, 0.5], dtype=F64))
    many = rows(2, 9, 3)  # nine gradients in three dimensions: no direction lowers all
    assert float(upgrad(many @ many.T).abs().sum()) == 0
    with pytest.raises(ValueError, match="nash: some direction must lower all losses"):
        nash(J @ J.T)


@pytest.mark.parametrize("seed", range(20))
def test_a_gram_matrix_that_rounding_made_indefinite_is_served(seed):
    J = rows(seed, 32, 15)
    G = (J.float() @ J.float().T).double()
    for aggregate in (upgrad, dual_projection, min_norm):
        w = aggregate(G)
        update = J.T @ w
        length = float(update.norm())
        parts = float((J.norm(dim=1) * w.abs()).sum())
        assert length <= 1e-3 * parts or float(((J @ update) / (J.norm(dim=1) * length)).min()) >= -1e-3
    few = rows(seed, 6, 5)
    few[:, 0] = few[:, 0].abs() + 1.0  # a direction exists
    update = few.T @ upgrad((few.float() @ few.float().T).double())
    assert float(((few @ update) / (few.norm(dim=1) * update.norm())).min()) >= -1e-4


@pytest.mark.parametrize("seed", range(12))
def test_projections_are_the_solutions_of_their_quadratic_programs(seed):
    J = rows(seed, 4, 8)
    G, u = (J @ J.T).numpy(), np.abs(np.random.default_rng(seed).standard_normal(4))
    L = np.linalg.cholesky(G)
    s, _ = scipy.optimize.nnls(L.T, -L.T @ u)
    found = dual_cone(J @ J.T, torch.from_numpy(u))
    np.testing.assert_allclose(found.numpy(), u + s, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(dual_projection(J @ J.T, torch.from_numpy(u)), found)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ratio", [1.0, 1e4])
def test_the_shortest_combination_has_one_slope_along_its_gradients_and_more_along_the_others(seed, ratio):
    J = rows(seed)
    J = J * ratio ** torch.linspace(-1, 1, len(J), dtype=F64)[:, None]
    w = min_norm(J @ J.T)
    d = J.T @ w
    assert float(w.min()) >= 0
    assert float(w.sum()) == pytest.approx(1.0)
    sizes = J.norm(dim=1)
    if float(d.norm()) <= 1e-7 * float((sizes * w).max()):
        return  # the gradients cancel: the shortest combination is 0
    off = (J @ d - d @ d) / (sizes * d.norm())
    assert float(off.min()) >= -1e-9
    assert float(off[sizes * w > 1e-9 * (sizes * w).max()].abs().max()) <= 1e-9


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("c", [0.2, 0.5, 1.5])
def test_cagrad_maximizes_the_least_slope_near_the_mean(seed, c):
    J = rows(seed, 4, 6)
    mean = J.mean(0)
    d = J.T @ cagrad(J @ J.T, c=c)
    assert float((d - mean).norm()) <= c * float(mean.norm()) * (1 + 1e-9)
    least = float((J @ d).min())
    for k in range(300):
        step = torch.randn(6, generator=torch.Generator().manual_seed(k), dtype=F64)
        other = mean + c * mean.norm() * step / step.norm()
        assert float((J @ other).min()) <= least + 1e-9
        near = d + 1e-3 * step
        near = mean + (near - mean) * min(1.0, c * float(mean.norm()) / float((near - mean).norm()))
        assert float((J @ near).min()) <= least + 1e-9
    assert torch.equal(cagrad(J @ J.T, c=0.0), torch.full((4,), 0.25, dtype=F64))


def test_imtl_and_nash_meet_their_equations():
    J = rows(3, 5, 9)
    J = J * torch.tensor([1e-2, 1.0, 3.0, 10.0, 100.0], dtype=F64)[:, None]
    G = J @ J.T
    w = imtl(G)
    slopes = (G @ w) / J.norm(dim=1)
    assert float(w.sum()) == pytest.approx(1.0)
    assert float((slopes / slopes[0] - 1).abs().max()) <= 1e-9
    w = nash(G)
    torch.testing.assert_close(G @ w, 1 / w)
    assert float(w.min()) > 0


def test_gradient_surgery_of_two_gradients_is_the_published_projection():
    J = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=F64)
    d = J.T @ pcgrad(J @ J.T, seed=0)
    first, second = J
    cut = (first @ second) / (second @ second) * second, (first @ second) / (first @ first) * first
    torch.testing.assert_close(d, 0.5 * (first - cut[0] + second - cut[1]))
    many = rows(5, 6, 4)
    many = many @ many.T
    assert torch.equal(pcgrad(many, seed=1), pcgrad(many, seed=1))
    assert not torch.equal(pcgrad(many, seed=1), pcgrad(many, seed=2))


@pytest.mark.parametrize("aggregate", [upgrad, dual_projection, min_norm, imtl])
def test_weights_are_differentiable(aggregate):
    J = rows(11, 4, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda J: aggregate(J @ J.T), J)


def test_cosines_are_those_of_the_vectors():
    J = rows(2, 4, 6)
    w = upgrad(J @ J.T)
    d = J.T @ w
    torch.testing.assert_close(cosines(J @ J.T, w), (J @ d) / J.norm(dim=1) / d.norm())
    assert cosines(J @ J.T, 0 * w).tolist() == [0.0] * 4


@pytest.mark.parametrize("name", EXACT)
def test_float32_in_float32_out(name):
    J = rows(6, 5, 30).float()
    w = EXACT[name](J @ J.T)
    assert w.dtype == torch.float32
    torch.testing.assert_close(w.double(), EXACT[name](J.double() @ J.double().T), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("G", "error", "sentence"),
    [
        (torch.ones(2, 3), ValueError, r"G must be a Gram matrix \(m, m\), got \(2, 3\); J @ J.T"),
        (torch.zeros(0, 0), ValueError, r"G must be a Gram matrix \(m, m\), got \(0, 0\)"),
        (torch.ones(2, 2).long(), ValueError, "G must be of a floating-point type, got torch.int64"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), ValueError, "G must be symmetric with a diagonal >= 0"),
        (-torch.eye(2), ValueError, "G must be symmetric with a diagonal >= 0"),
        (torch.full((2, 2), float("nan")), NonFinite, "G must be finite, got NaN or infinity"),
    ],
)
@pytest.mark.parametrize("name", EXACT)
def test_what_is_no_gram_matrix_is_refused(name, G, error, sentence):
    with pytest.raises(error, match=f"{name}: {sentence}"):
        EXACT[name](G)


def test_other_wrong_arguments_are_named():
    G = torch.eye(2)
    with pytest.raises(ValueError, match=r"upgrad: preference must be \(2,\) and >= 0, got shape \(3,\)"):
        upgrad(G, torch.ones(3))
    with pytest.raises(ValueError, match="cagrad: c must be a number >= 0, got -1"):
        cagrad(G, c=-1)
    with pytest.raises(ValueError, match="nash: gradients must not be zero, got 1"):
        nash(torch.diag(torch.tensor([1.0, 0.0])))
    with pytest.raises(ValueError, match=r"dual_cone: U must have shape \(..., 2\), got \(3,\)"):
        dual_cone(G, torch.ones(3))
