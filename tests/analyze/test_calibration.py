import math

import pytest
import torch
from matplotlib.figure import Figure

from frechet.analyze import calibration
from frechet.errors import NonFinite

F64 = torch.float64


def drawn(n, sharper=1.0, seed=0):
    """Probabilities, and labels drawn from them; sharper than 1, the stated ones are overconfident."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 4, generator=g, dtype=F64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    return (sharper * logits).softmax(1), labels


def test_the_scores_are_their_definitions():
    p, y = drawn(300)
    found = calibration(p, y)
    assert found.nll == pytest.approx(float(torch.nn.functional.nll_loss(p.log(), y)))
    assert found.brier == pytest.approx(float((p - torch.eye(4, dtype=F64)[y]).square().sum(1).mean()))
    assert found.accuracy == pytest.approx(float((p.argmax(1) == y).double().mean()))
    confidence, right, total = p.max(1).values, p.argmax(1) == y, 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        if inside.any():
            total += abs(float(right[inside].double().mean() - confidence[inside].mean())) * int(inside.sum()) / 300
    assert found.ece == pytest.approx(total)
    assert int(found.counts.sum()) == 300


def test_right_probabilities_have_the_error_of_chance_and_sharper_ones_more():
    found = [calibration(*drawn(2000, seed=s)) for s in range(20)]
    mean, spread = (f(torch.tensor([c.ece for c in found])) for f in (torch.mean, torch.std))
    chance = sum(c.ece_of_chance for c in found) / 20
    assert abs(float(mean) - chance) < 4 * float(spread) / math.sqrt(20)
    sharp = calibration(*drawn(2000, sharper=3.0))
    assert sharp.ece > 5 * sharp.ece_of_chance


def test_two_classes_may_be_given_by_one_number():
    p = torch.tensor([0.2, 0.7, 0.9], dtype=F64)
    y = torch.tensor([0, 1, 0])
    one, two = calibration(p, y), calibration(torch.stack([1 - p, p], 1), y)
    assert one.to_dict() == two.to_dict()


def test_its_intervals_cover_and_it_is_drawn():
    inside = total = 0
    for seed in range(10):
        found = calibration(*drawn(1000, seed=seed))
        low, high = found.intervals()
        kept = found.counts >= 20
        inside += int(((found.confidences >= low) & (found.confidences <= high))[kept].sum())
        total += int(kept.sum())
    assert abs(inside / total - 0.95) < 3.3 * math.sqrt(0.95 * 0.05 / total)
    axes = found.plot(Figure().subplots())
    assert axes.get_xlabel() == "confidence"
    assert "examples" in found._repr_html_()


@pytest.mark.parametrize(
    ("p", "y", "bins", "said"),
    [
        (torch.ones(3, 2), torch.zeros(3), 15, "add up to 1"),
        (torch.full((3, 2), 0.5), torch.zeros(2), 15, "labels must be"),
        (torch.full((3, 2), 0.5), torch.full((3,), 2), 15, "between 0 and 1, got 2"),
        (torch.full((3, 2), 0.5), torch.zeros(3), 0, "bins must be at least 1"),
    ],
)
def test_what_does_not_fit_is_said(p, y, bins, said):
    with pytest.raises(ValueError, match=said):
        calibration(p, y, bins=bins)


def test_nan_is_refused():
    with pytest.raises(NonFinite, match="finite"):
        calibration(torch.tensor([[math.nan, 1.0]]), torch.tensor([0]))
