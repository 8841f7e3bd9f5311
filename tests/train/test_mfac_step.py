import torch
from torch import nn

from frechet import Objective, cross_entropy
from frechet.train import MFAC, mfac_init, mfac_step

F64 = torch.float64


def test_pure_steps_are_those_of_the_optimizer():
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(9, 4, generator=g, dtype=F64), torch.randint(0, 3, (9,), generator=g)) for _ in range(8)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    objective = Objective(model, cross_entropy(), batches)
    x, state = objective.point, mfac_init(objective.space, damping=1e-2)
    points = []
    for batch in batches:
        x, state, natural = mfac_step(objective.on(batch), x, state, lr=0.1, window=3, weight_decay=0.1)
        assert natural.shape == x.shape
        points.append(x)
    optimizer = MFAC(model.parameters(), lr=0.1, damping=1e-2, window=3, weight_decay=0.1)
    for (X, y), expected in zip(batches, points, strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
        torch.testing.assert_close(objective.point, expected, rtol=1e-9, atol=1e-12)
    assert len(state.inverse.gradients) == 3
