from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from frechet.objective.criteria import cross_entropy
from laws import close
from objective_cases import labels, randn

F64 = torch.float64
logits, tokens, weight = randn(3, 5, 4), labels(4, 3, 5), torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=F64)
tokens[0, 1:3], tokens[2, 4] = -100, -100
soft = randn(3, 5, 4, seed=3).softmax(-1)

SETTINGS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.2},
    "weight": {"weight": weight},
    "both": {"label_smoothing": 0.2, "weight": weight},
    "another ignore_index": {"ignore_index": 255},
    "another ignore_index and weight": {"ignore_index": 255, "weight": weight},
    "a class is ignored": {"ignore_index": 1, "weight": weight},
}
settings = pytest.mark.parametrize("name", SETTINGS)


def targets_for(keywords):
    index = keywords.get("ignore_index", -100)
    return tokens.masked_fill(tokens == -100, index)


@settings
def test_total_over_count_is_torchs_mean(name):
    keywords, y = SETTINGS[name], targets_for(SETTINGS[name])
    criterion = cross_entropy(**keywords)
    expected = F.cross_entropy(logits.movedim(-1, 1), y, **keywords)
    assert criterion.terms(logits, y).shape == (3,)
    close(criterion.terms(logits, y).sum() / criterion.count(y), expected)
    totals = sum(criterion.terms(logits[s], y[s]).sum() for s in (slice(1), slice(1, 3)))
    close(totals / sum(criterion.count(y[s]) for s in (slice(1), slice(1, 3))), expected)


@pytest.mark.parametrize("keywords", [{}, {"label_smoothing": 0.2}, {"label_smoothing": 0.2, "weight": weight}])
def test_probabilities_as_targets_follow_torch_too(keywords):
    criterion = cross_entropy(**keywords)
    expected = F.cross_entropy(logits.movedim(-1, 1), soft.movedim(-1, 1), **keywords)
    close(criterion.terms(logits, soft).sum() / criterion.count(soft), expected)
    agrees_with_autograd(criterion, soft)


def agrees_with_autograd(criterion, y):
    u = randn(*logits.shape, seed=8)

    def value(f):
        return criterion.terms(f, y).sum()

    close(criterion.hessian_product(logits, y, u), torch.autograd.functional.hvp(value, logits, u)[1])
    close(criterion.score(logits, y), torch.autograd.functional.jacobian(value, logits))


@settings
@pytest.mark.parametrize("rows", [1 << 24, 8])
def test_the_hessian_product_is_the_derivative_in_any_number_of_chunks(name, rows, monkeypatch):
    monkeypatch.setattr(import_module("frechet.objective.criteria._cross_entropy"), "ROWS", rows)
    agrees_with_autograd(cross_entropy(**SETTINGS[name]), targets_for(SETTINGS[name]))


@pytest.mark.parametrize("dim", [1, 2, -1, -2])
def test_the_class_axis_is_where_it_is_said_to_be(dim):
    moved, u = logits.movedim(-1, dim), randn(*logits.shape, seed=8)
    last, there = cross_entropy(), cross_entropy(class_dim=dim)
    close(there.terms(moved, tokens), last.terms(logits, tokens))
    product = there.hessian_product(moved, tokens, u.movedim(-1, dim))
    close(product, last.hessian_product(logits, tokens, u).movedim(-1, dim))

    def draw(c, f):
        return c.sample(f, tokens, torch.Generator().manual_seed(0))

    assert torch.equal(draw(there, moved), draw(last, logits))
    score = there.score(moved, tokens)
    projected = there.project(score, u.movedim(-1, dim)).movedim(dim, -1)
    close(projected, last.project(last.score(logits, tokens), u))


def test_fisher_enumerates_the_labels():
    criterion, u = cross_entropy(), randn(*logits.shape, seed=8)
    expected, p = torch.zeros_like(logits), logits.softmax(-1)
    for c in range(4):
        label = torch.full_like(tokens, c).masked_fill(tokens == -100, -100)
        expected += p[..., c : c + 1] * criterion.project(criterion.score(logits, label), u)
    close(criterion.fisher_product(logits, tokens, u), expected)
    full = cross_entropy().hessian_product(logits, tokens.clamp(0), u)
    close(criterion.fisher_product(logits, 3 * soft, u), full)  # one label per position, whatever the targets sum to


def test_drawn_labels_follow_the_softmax_and_keep_the_ignored_places():
    drawn = cross_entropy().sample(logits, tokens, torch.Generator().manual_seed(0))
    assert torch.equal(drawn == -100, tokens == -100)
    n = 20_000
    row = cross_entropy().sample(logits[:1, :1].expand(n, 1, 4), torch.zeros(n, 1, dtype=torch.long), torch.Generator())
    p = logits[0, 0].softmax(-1)
    frequency = torch.bincount(row.flatten(), minlength=4) / n
    assert float(((frequency - p) / (p * (1 - p) / n).sqrt()).abs().max()) < 4.5
    assert cross_entropy().sample(logits, soft, torch.Generator()).shape == (3, 5)


def test_ignored_places_do_not_move_the_stream():
    g = torch.Generator().manual_seed(1)
    whole = cross_entropy().sample(logits, tokens, torch.Generator().manual_seed(1))
    kept = tokens != -100
    alone = cross_entropy().sample(logits[kept], tokens[kept], g)
    assert torch.equal(whole[kept], alone)


def test_integer_labels_of_any_width_are_taken():
    close(cross_entropy().terms(logits, tokens.int()), cross_entropy().terms(logits, tokens))
    assert float(cross_entropy(weight=weight).count(tokens.short())) == float(
        cross_entropy(weight=weight).count(tokens)
    )


def test_classification_without_further_axes():
    close(
        cross_entropy().terms(logits[0], tokens[0].clamp(0)),
        F.cross_entropy(logits[0], tokens[0].clamp(0), reduction="none"),
    )


def test_the_weight_is_copied():
    w = torch.ones(4)
    criterion = cross_entropy(weight=w)
    w.zero_()
    assert float(criterion.count(tokens)) == 12.0


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"targets must have shape \(3, 5\) for outputs \(3, 5, 4\).*got"):
        cross_entropy().terms(logits, tokens[:, :4])
    with pytest.raises(ValueError, match=r"targets must have shape \(3, 4\).*with class_dim=1, got \(3, 5\)"):
        cross_entropy(class_dim=1).terms(logits, tokens)
    with pytest.raises(ValueError, match=r"got \(3, 5\); class indices must be integers"):
        cross_entropy().terms(logits, tokens.double())
    for dim, outputs in ((0, logits), (-3, logits), (3, logits), (-1, logits[0, 0])):
        with pytest.raises(ValueError, match=f"must have an example axis and class_dim={dim}"):
            cross_entropy(class_dim=dim).terms(outputs, tokens)


def test_wrong_settings_are_refused():
    for smoothing in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"cross_entropy: label_smoothing must lie in \[0, 1\)"):
            cross_entropy(label_smoothing=smoothing)
    for bad in (torch.ones(2, 2), -torch.ones(3)):
        with pytest.raises(ValueError, match=r"cross_entropy: weight must be \(classes,\) and non-negative"):
            cross_entropy(weight=bad)
    for keywords, got in (({"label_smoothing": 0.1}, "label_smoothing"), ({"weight": weight}, "class weights")):
        criterion = cross_entropy(**keywords)
        for ask in (lambda c=criterion: c.fisher_product(logits, tokens, logits), criterion.require_likelihood):
            with pytest.raises(ValueError, match=f"fisher: cross_entropy must be a likelihood, got {got}"):
                ask()


def test_targets_that_are_no_class_are_named():
    with pytest.raises(ValueError, match="targets must lie between 0 and 1 or be ignore_index=-100, got 0 to 7"):
        cross_entropy().terms(torch.zeros(3, 2), torch.tensor([0, -100, 7]))
