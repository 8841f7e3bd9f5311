from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frechet.errors import UnusableObjective
from frechet.objective import Objective
from frechet.objective._head import head_of, rows_of
from frechet.objective.criteria import cross_entropy, custom, gaussian, squared_error
from frechet.objective.criteria._cross_entropy import CrossEntropy
from frechet.operators.derivatives._gauss_newton import gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._products import dual_numbers, hessian_product
from laws import close
from objective_models import labels, randn, seeded

V, D = 7, 3


class Words(nn.Module):
    """Words in, logits out; `after` is what the model does to its head's output."""

    def __init__(self, after=lambda y: y, bias=True, tied=False):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(V, D), nn.LayerNorm(D), nn.Linear(D, V, bias=bias)
        self.after = after
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, words):
        return self.after(self.head(self.norm(self.embed(words).tanh().cumsum(1))))


def batches():
    y = labels(V, 5, 4, seed=2)
    y[0, 2:], y[1], y[4] = -100, -100, -100  # examples without a term, and a batch without one
    return list(zip(labels(V, 5, 4).split([2, 2, 1]), y.split([2, 2, 1]), strict=True))


def pair(criterion, model=None, data=None, **keywords):
    model, data = model or seeded(Words), data or batches()
    return Objective(model, criterion, data), Objective(model, criterion, data, head="head", head_rows=3, **keywords)


WEIGHT = torch.linspace(0.5, 2.0, V, dtype=torch.float64)
CRITERIA = {
    "plain": cross_entropy(),
    "smoothed": cross_entropy(label_smoothing=0.2),
    "weighted": cross_entropy(weight=WEIGHT),
    "both": cross_entropy(label_smoothing=0.2, weight=WEIGHT),
    "a class ignored": cross_entropy(ignore_index=3),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_value_gradient_and_third_derivative_are_those_of_the_whole_logits(name):
    data = batches() if name != "a class ignored" else [(x, y.where(y != -100, 3)) for x, y in batches()]
    whole, chunked = pair(CRITERIA[name], data=data)
    close(chunked.value(), whole.value())
    close(chunked.gradient(), whole.gradient())
    v, w = whole.space.random(range(2), 0, "gaussian").T

    def third(objective):
        x = objective.point.requires_grad_()
        return torch.autograd.grad(hessian_product(objective.value, x, v) @ w, x)[0]

    close(third(chunked), third(whole))


def test_both_derivatives_are_right_in_every_argument_by_both_modes():
    def weighted(h, W, b, c):
        state = {"head.weight": W, "head.bias": b}
        rows = rows_of(head, cross_entropy(label_smoothing=0.1), h, state, targets)
        return rows.per_example(c[rows.kept] * rows.terms())

    head = head_of(seeded(Words), "head", 2)
    targets = torch.tensor([[1, -100, 3], [0, 2, 6]])
    point = [randn(*s, seed=i).requires_grad_() for i, s in enumerate([(2, 3, D), (V, D), (V,), (6,)])]
    with dual_numbers():  # loads torch's rules, which warn at first use
        pass
    assert torch.autograd.gradcheck(weighted, point, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(weighted, point, check_fwd_over_rev=True)


@pytest.mark.parametrize("width", [1, 2, 6])
def test_targets_of_every_shape_are_cut_into_rows(width):
    model, X = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, width)).double(), randn(4, 3, 2)
    cases = [(squared_error(), randn(4, 3, width)), (cross_entropy(), randn(4, 3, width).softmax(-1))]
    if width % 2 == 0:
        cases.append((gaussian(), randn(4, 3, width // 2)))
    for criterion, y in cases:
        whole = Objective(model, criterion, [(X, y)])
        chunked = Objective(model, criterion, [(X, y)], head="2", head_rows=5)
        close(chunked.value(), whole.value())
        close(chunked.gradient(), whole.gradient())


class Watched(CrossEntropy):
    """Records the largest outputs that any of its methods sees."""

    largest = 0

    def _rows(self, outputs, targets):
        Watched.largest = max(Watched.largest, outputs.numel())
        return super()._rows(outputs, targets)


def test_no_product_sees_more_than_one_chunk_of_logits():
    criterion = Watched(-100, 0.0, None, -1)
    for rows in (1, 3, 1000):
        objective = Objective(seeded(Words), criterion, batches(), head="head", head_rows=rows)
        v = objective.space.random(0, 0)
        Watched.largest = 0
        objective.gradient(), hessian(objective) @ v, gauss_newton(objective) @ v
        # the first batch has two rows that count, the second eight
        assert Watched.largest == V * min(rows, 8)


def test_the_live_model_is_as_before_also_after_an_error():
    model = seeded(Words)
    words, _ = batches()[0]
    expected, own = model(words), dict(model.head.__dict__)
    pair(cross_entropy(), model)[1].gradient()
    assert model.head.__dict__ == own
    model.after = lambda y: y[..., :V] @ torch.ones(V, V, dtype=y.dtype)
    with pytest.raises(UnusableObjective):
        pair(cross_entropy(), model)[1].gradient()
    assert model.head.__dict__ == own
    model.after = lambda y: y
    assert torch.equal(model(words), expected)


def test_a_forward_that_someone_set_on_the_head_is_put_back():
    model = seeded(Words)
    patched = model.head.forward
    model.head.forward = patched
    pair(cross_entropy(), model)[1].gradient()
    assert model.head.__dict__["forward"] is patched


@pytest.mark.parametrize(
    "after",
    [
        lambda y: 2.0 * y,
        lambda y: y / 3.0,
        lambda y: 5.0 * torch.tanh(y / 5.0),
        lambda y: y.tanh_(),
        lambda y: y.mul_(2.0),
        lambda y: y[..., :2],
        lambda y: y[..., 1:],
        lambda y: y.transpose(0, 1).transpose(1, 2),
        lambda y: y.flip(-1),
        lambda y: y.flatten(1)[:, 1 : D + 1],
        lambda y: y.float(),
        lambda y: y.log_softmax(-1),
        lambda y: y.flatten(1),
        lambda y: torch.cat([y, y], -1),
        lambda y: y + 0.0,
        lambda y: y @ torch.eye(V, dtype=y.dtype),
        lambda y: SimpleNamespace(logits=y * 1.0),
    ],
)
def test_what_a_model_does_to_its_heads_output_is_found_at_every_pass(after):
    _, chunked = pair(cross_entropy(), seeded(lambda: Words(after)))
    for ask in (chunked.value, chunked.gradient, lambda: gauss_newton(chunked) @ chunked.point):
        with pytest.raises(UnusableObjective, match=r"head 'head'.*leave head= out"):
            ask()


@pytest.mark.parametrize(
    "after", [lambda y: SimpleNamespace(logits=y), lambda y: {"logits": y.to(y.dtype)}, lambda y: y.contiguous()]
)
def test_an_output_that_is_the_heads_own_is_taken(after):
    whole, chunked = pair(cross_entropy(), seeded(lambda: Words(after)))
    close(chunked.gradient(), whole.gradient())


def test_a_choice_of_rows_is_taken():
    for after, targets in (
        (lambda y: y[:, -1], lambda y: y[:, 0]),
        (lambda y: y[:, 1:], lambda y: y[:, 1:]),
        (lambda y: y.transpose(0, 1), lambda y: y.T),
        (lambda y: y.flatten(0, 1), torch.flatten),
    ):
        data = [(x, targets(y)) for x, y in batches()]
        whole, chunked = pair(cross_entropy(), seeded(lambda after=after: Words(after)), data)
        close(chunked.gradient(), whole.gradient())


def test_a_head_that_is_called_twice_or_never_is_refused():
    class Twice(Words):
        def forward(self, words):
            return super().forward(words) + 0 * self.head(self.embed(words))

    class Never(Words):
        def forward(self, words):
            return F.linear(self.embed(words), self.head.weight)

    for model, calls in ((Twice, 2), (Never, 0)):
        with pytest.raises(UnusableObjective, match=f"must be called once by the model's forward pass, got {calls}"):
            pair(cross_entropy(), seeded(model))[1].value()


def test_check_compares_with_the_whole_logits():
    data = list(reversed(batches()))  # the first batch has no term
    whole, chunked = pair(cross_entropy(), data=data)
    assert chunked.check().value == pytest.approx(whole.check().value, rel=1e-12)

    def secretly(y):
        y.data.mul_(2.0)  # leaves no trace in the tensor
        return y

    _, chunked = pair(cross_entropy(), seeded(lambda: Words(secretly)))
    with pytest.raises(UnusableObjective, match=r"one example of batch 0 .* does something to its head's output"):
        chunked.check()


def test_errors_in_the_body_are_the_models_own():
    class Broken(Words):
        def forward(self, words):
            raise ValueError("the body is broken")

    with pytest.raises(ValueError, match="the body is broken"):
        pair(cross_entropy(), seeded(Broken))[1].value()


def test_bad_heads_are_refused_with_the_fix():
    model = seeded(Words)
    with pytest.raises(ValueError, match=r"must name a module of the model, got 'lm_head'; linear ones are \['head'\]"):
        Objective(model, cross_entropy(), batches(), head="lm_head")
    with pytest.raises(TypeError, match=r"head must be a torch.nn.Linear .* got Embedding at 'embed'"):
        Objective(model, cross_entropy(), batches(), head="embed")
    with pytest.raises(ValueError, match="head_rows must be at least 1, got 0"):
        Objective(model, cross_entropy(), batches(), head="head", head_rows=0)
    with pytest.raises(ValueError, match="head_rows must come with head="):
        Objective(model, cross_entropy(), batches(), head_rows=3)
    nn.utils.parametrizations.weight_norm(model.head)
    with pytest.raises(TypeError, match=r"a normalization of the head's weight must be merged first"):
        Objective(model, cross_entropy(), batches(), head="head")


def test_criteria_that_do_not_fit_rows_are_refused():
    X = randn(4, 3, 2)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()

    def gradient(criterion, y):
        return Objective(model, criterion, [(X, y)], head="2").gradient()

    with pytest.raises(ValueError, match="sum over the rows of the outputs, got Custom"):
        gradient(custom(lambda f, y: (f - y) ** 4), randn(4, 3, 2))
    with pytest.raises(ValueError, match=r"classes on the last axis of the outputs \(4, 3, 2\).*class_dim=1"):
        gradient(nn.CrossEntropyLoss(), labels(3, 4, 2))
    with pytest.raises(ValueError, match=r"cross_entropy: targets must have shape \(4, 3\)"):
        gradient(cross_entropy(), labels(2, 4, 2))
    with pytest.raises(ValueError, match=r"squared_error: targets must have the outputs' shape \(4, 3, 2\)"):
        gradient(squared_error(), randn(4, 3))
    with pytest.raises(ValueError, match="gaussian: outputs must hold mean and log variance"):
        gradient(gaussian(), randn(4, 3, 2))
    with pytest.raises(ValueError, match=r"targets must lie between 0 and 1 .* got 0 to 2"):
        gradient(cross_entropy(), labels(3, 4, 3))


def test_a_chunk_holds_as_many_bytes_in_every_dtype_that_is_computed_in():
    head = head_of(nn.Sequential(nn.Linear(4, 1 << 15).bfloat16()), "0", None)
    assert head.chunk(torch.float64) == (1 << 25) // (8 << 15)
    assert head.chunk(torch.float32) == 2 * head.chunk(torch.float64)
    assert head_of(nn.Sequential(nn.Linear(4, 8)), "0", 3).chunk(torch.float32) == 3
