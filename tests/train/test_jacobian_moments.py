import math

import pytest
import torch
from torch import nn

from frechet.train import Maxout, jacobian_moments, maxout_variance

F64 = torch.float64


def test_the_moments_are_those_of_dense_jacobians():
    """E |J u|^2 = |J|_F^2 / n over the sphere, and its variance from the fourth moments of the sphere."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), torch.randn(1, 4, dtype=F64)
    found = jacobian_moments(model, x, seed=0, probes=800)
    assert found.names == ("0", "1", "2", "")
    for i, part in enumerate((model[:1], model[:2], model, model)):
        J = torch.autograd.functional.jacobian(lambda z, part=part: part(z)[0], x)[:, 0]
        M, n = J.T @ J, 4
        mean = float(M.trace()) / n
        variance = (2 * float(M.square().sum()) + float(M.trace()) ** 2) / (n * (n + 2)) - mean**2
        assert abs(float(found.means[i]) - mean) < 4 * math.sqrt(variance / 800)
        assert float(found.variances[i]) == pytest.approx(variance, rel=0.25)


def test_every_example_has_a_direction_of_its_own():
    torch.manual_seed(0)
    found = jacobian_moments(nn.Linear(4, 3).double(), torch.randn(500, 4, dtype=F64), seed=0, probes=1)
    assert float(found.variances[0]) > 0
    assert found.samples == 500


def test_depth_shows_in_the_log_norms():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64, bias=False).double() for _ in range(20)]
    x = torch.randn(16, 64, dtype=F64)
    for gain, slope in ((1.0, 0.0), (2.0, math.log(4))):
        for layer in layers:
            nn.init.orthogonal_(layer.weight, gain=gain)
        logs = jacobian_moments(nn.Sequential(*layers), x, seed=0, probes=2).log_means[:20]
        torch.testing.assert_close(logs[1:] - logs[:-1], torch.full((19,), slope, dtype=F64), atol=1e-6, rtol=1e-6)


def test_maxout_layers_keep_the_norm_along_the_inputs_and_shrink_across_them():
    """J(x) x is the output, whose norm the initialization keeps; across, each layer multiplies |J u|^2 by c."""
    n, depth = 512, 6
    x = torch.randn(32, n, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(*[Maxout(n, n, 5, seed=s) for s in range(depth)])
    found = jacobian_moments(model, x, seed=0, probes=1, along=x)
    ends = [found.names.index(str(i)) for i in range(depth)]
    assert float(found.means[ends].log().abs().max()) < 0.25
    across = jacobian_moments(model, x, seed=0, probes=2).means[ends].log()
    steps = torch.diff(across, prepend=across.new_zeros(1))[:4]
    assert float((steps - math.log(maxout_variance(5))).abs().max()) < 0.1


def test_layers_without_a_tensor_and_training_state_are_left_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

        def forward(self, x):
            return self.cell(self.drop(self.cell(x)))

    model = Net().double().train()
    found = jacobian_moments(model, torch.randn(5, 4, dtype=F64), seed=0, probes=2)
    assert found.names == ("cell", "drop", "")  # of a module that is called twice, the first call
    assert model.training
    assert not model.cell._forward_hooks
    assert "mean log" in str(found._repr_html_())


@pytest.mark.parametrize(
    ("model", "x", "probes", "said"),
    [
        (nn.Linear(4, 3), torch.ones(2, 4, dtype=torch.long), 1, "floating tensor"),
        (nn.Linear(4, 3), torch.ones(2, 4), 0, "probes must be at least 1"),
        (nn.BatchNorm1d(4), torch.ones(2, 4), 1, "statistics of the batch"),
    ],
)
def test_what_does_not_fit_is_said(model, x, probes, said):
    with pytest.raises(ValueError, match=said):
        jacobian_moments(model, x, seed=0, probes=probes)
