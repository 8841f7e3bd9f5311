import pytest
import torch

from frechet.compress import format_error, uniform
from frechet.errors import NonFinite


def integers(bits):
    """The uniform quantizer without a level at 0: 2^bits levels at odd halves."""
    top = 2 ** (bits - 1) - 0.5
    return lambda w: ((w - 0.5).round() + 0.5).clamp(-top, top)


def largest(w, part):
    """The entries of largest magnitude, others 0."""
    return w * (w.abs() >= w.abs().flatten().kthvalue(round((1 - part) * w.numel()) + 1).values)


def two_of_four(w):
    groups = w.view(len(w), -1, 4)
    kept = torch.zeros_like(groups).scatter_(2, groups.abs().topk(2, 2).indices, 1.0)
    return (groups * kept).view_as(w)


@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1188), (3, 0.03744), (4, 0.01154)])
def test_uniform_quantizers_have_the_values_of_max(bits, error):
    found = format_error(integers(bits), seed=0)
    low, high = found.interval(0.999)
    assert float(low) - 0.002 * error < error < float(high) + 0.002 * error  # the scale is that of the draw


@pytest.mark.parametrize("part", [0.5, 0.25, 0.1])
def test_sparse_formats_have_their_closed_form(part):
    normal = torch.distributions.Normal(0.0, 1.0)
    t = normal.icdf(torch.tensor(1 - part / 2))
    closed = float(1 - part - 2 * t * normal.log_prob(t).exp())  # E w^2 over |w| < t
    found = format_error(lambda w: largest(w, part), seed=0)
    assert float(found.value) == pytest.approx(closed, abs=4 * float(found.standard_error) + 1e-3)


def test_two_of_four_lies_between_and_composes():
    error = [float(format_error(f, seed=0).value) for f in (lambda w: largest(w, 0.5), two_of_four, integers(1))]
    assert error == sorted(error)
    both = float(format_error(lambda w: two_of_four(w).sign(), seed=0).value)
    assert both > error[1]


def test_a_quantizer_that_scales_itself_is_taken_as_it_is():
    found = format_error(lambda w: uniform(w, 4), seed=0, scaled=False)
    w = torch.randn(256, 256, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    assert float(found.value) == pytest.approx(float((uniform(w, 4) - w).square().mean()), rel=0.05)
    assert found.method == "scale 1"
    assert float(format_error(lambda w: w, seed=0).value) < 1e-25
    assert torch.equal(format_error(integers(2), seed=3).value, format_error(integers(2), seed=3).value)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match=r"rounding must return the matrix's shape \(256, 256\), got \(256,\)"):
        format_error(lambda w: w[0], seed=0)
    with pytest.raises(NonFinite, match="rounding must return finite numbers"):
        format_error(lambda w: w / 0, seed=0)
    with pytest.raises(ValueError, match="at least 2 rows and a column, got 1 and 256"):
        format_error(lambda w: w, seed=0, rows=1)
