import torch
from torch import nn

from frechet import Objective, squared_error
from frechet.compress import quantized, uniform


def test_named_weights_are_quantized_and_others_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    data = [(torch.randn(5, 4, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64))]
    objective = Objective(model, squared_error(), data)
    x = quantized(objective, {"1.weight": 3})
    blocks = objective.space.unflatten(x)
    torch.testing.assert_close(blocks["1.weight"], uniform(model[1].weight.detach(), 3))
    for name in ("0.weight", "0.bias", "1.bias"):
        assert torch.equal(blocks[name], model.get_parameter(name))
    with torch.no_grad():
        model[1].weight.copy_(blocks["1.weight"])
    torch.testing.assert_close(objective.value(), objective.value(x))
