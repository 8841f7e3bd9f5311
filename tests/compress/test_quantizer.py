import pytest
import torch

from frechet.compress import uniform


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale", ["tensor", "channel", 4])
def test_each_scale_has_few_values_and_errors_of_half_a_step(bits, symmetric, scale):
    w = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = uniform(w, bits, scale=scale, symmetric=symmetric)
    rows = {"tensor": (1, 48), "channel": (6, 8)}.get(scale, (12, 4))
    for before, after in zip(w.reshape(rows), q.reshape(rows), strict=True):
        assert len(after.unique()) <= 2**bits
        low, high = before.min().clamp_max(0), before.max().clamp_min(0)
        step = before.abs().max() / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
        assert float((after - before).abs().max()) <= float(step) * (0.5 if symmetric else 1.0) * (1 + 1e-12)


def test_zero_is_stored_exactly_and_a_quantized_weight_stays():
    w = torch.tensor([[0.0, 3.0, -1.0], [0.0, 0.0, 0.0]])
    for symmetric in (True, False):
        q = uniform(w, 4, symmetric=symmetric)
        assert q[0, 0] == 0
        assert q[1].tolist() == [0.0, 0.0, 0.0]
        torch.testing.assert_close(uniform(q, 4, symmetric=symmetric), q)


def test_wrong_arguments_are_named():
    w = torch.ones(2, 6)
    for arguments, sentence in (
        ((w, 1), "uniform: bits must be an int from 2 to 16, got 1"),
        ((w, 2.0), "uniform: bits must be an int from 2 to 16, got 2.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            uniform(*arguments)
    with pytest.raises(ValueError, match="uniform: groups must divide the rows, got groups of 4 in rows of 6"):
        uniform(w, 4, scale=4)
    with pytest.raises(ValueError, match="uniform: scale must be 'tensor', 'channel' or a group's size"):
        uniform(w, 4, scale="row")
    assert uniform(w, 1, symmetric=False).shape == (2, 6)


@pytest.mark.parametrize("scale", ["tensor", "channel", 4])
@pytest.mark.parametrize("axis", [1, -1])
def test_channels_may_lie_on_another_axis(axis, scale):
    w = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(w, 3, scale=scale, axis=axis), uniform(w.T, 3, scale=scale).T)
    with pytest.raises(ValueError, match="uniform: axis must be one of 2, got 2"):
        uniform(w, 3, axis=2)
