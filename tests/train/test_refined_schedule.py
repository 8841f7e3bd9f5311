import pytest
import torch

from frechet.train import refined_schedule

F64 = torch.float64


@pytest.mark.parametrize("steps", [2, 3, 100, 1001])
@pytest.mark.parametrize("power", [1, 2])
def test_constant_norms_give_the_linear_decay(steps, power):
    t = torch.arange(1, steps + 1, dtype=F64)
    expected = (1 - t / steps) / (1 - 1 / steps)
    torch.testing.assert_close(refined_schedule([3.7] * steps, power=power), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("power", [1, 2])
def test_factors_are_the_formula(power):
    g = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.1
    w = g**-power
    eta = torch.stack([w[t] * w[t + 1 :].sum() for t in range(20)])
    torch.testing.assert_close(refined_schedule(g, power=power, smooth=0.0), eta / eta.max())
    torch.testing.assert_close(
        refined_schedule(1e-200 * g, power=1, smooth=0.0), refined_schedule(g, power=1, smooth=0.0)
    )


def test_a_single_small_norm_is_no_spike_after_the_median():
    g = torch.ones(100, dtype=F64)
    g[40] = 1e-3
    linear = refined_schedule(torch.ones(100))
    assert float((refined_schedule(g) - linear).abs().max()) < 0.05
    assert float(refined_schedule(g, smooth=0.0)[39]) < 0.05


def test_wrong_arguments_are_named():
    for norms, options, sentence in (
        ([1.0], {}, "norms must have one number for each of two steps or more"),
        ([1.0, 0.0], {}, "norms must be positive and finite, got 0.0"),
        ([1.0, 1.0], {"power": 3}, "power must be 1 or 2"),
        ([1.0, 1.0], {"smooth": 1.0}, r"smooth lie in \[0, 1\), got 2 and 1.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            refined_schedule(norms, **options)
