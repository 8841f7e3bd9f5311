import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frechet.analyze._examples import example_gradients
from frechet.analyze._gram import gradient_gram, ntk_matrix
from frechet.analyze._linear_layers import candidates, still_factored
from frechet.objective import Objective, l2
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators.derivatives._jacobian import jacobian

F64 = torch.float64


class Twice(nn.Module):
    """One layer is called twice, one once, one never."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.idle = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 3)

    def forward(self, x):
        return self.b(self.a(self.a(x).tanh()).tanh())


class Elsewhere(nn.Module):
    """The weight of `a` and the bias of `b` are used outside of their layers too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.c(self.b(self.a(x).tanh()).tanh() + self.b.bias) + 0.1 * F.linear(x, self.a.weight)[:, :2]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x).tanh()).tanh())


class TimeFirst(nn.Module):
    """Steps come first inside, and there are as many of them as examples in a batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(1, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.b(self.a(x.T.unsqueeze(-1)).tanh().mean(0))


class Plain(nn.Linear):
    def forward(self, input):
        return 2.0 * super().forward(input)


MODELS = {
    "all": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)), {"0", "2"}),
    "called twice": (Twice, {"b"}),
    "used elsewhere": (Elsewhere, {"c"}),
    "tied": (Tied, {"c"}),
    "many positions": (TimeFirst, {"b"}),
    "a subclass": (lambda: nn.Sequential(Plain(3, 3), nn.Tanh(), nn.Linear(3, 2)), {"2"}),
    "normalized": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2)),
        {"2"},
    ),
}


def made(name):
    torch.manual_seed(0)
    model = MODELS[name][0]().double()
    data = [(torch.randn(3, 3, dtype=F64), torch.randn(3, 2, dtype=F64)) for _ in range(2)]
    return Objective(model, squared_error(), data, penalty=l2(0.2))


def layers_of(objective):
    snapshot = objective.snapshot()
    _, blocks = snapshot.leaves(snapshot.space)
    layers = candidates(snapshot, snapshot.space)
    kept = list(layers)

    def visit(_part, batch):
        kept[:] = still_factored(snapshot, blocks, batch, kept, len(batch.targets))

    snapshot.sweep(visit)
    names = {m: n for n, m in objective.model.named_modules()}
    return {names[layer.module] for layer in kept}


@pytest.mark.parametrize("name", MODELS)
def test_only_layers_that_see_one_vector_and_own_their_parameters_are_taken(name):
    objective = made(name)
    assert layers_of(objective) == MODELS[name][1]
    by_factors, by_rows = (example_gradients(objective, route=route) for route in ("vmap", "loop"))
    torch.testing.assert_close(by_factors.squared_norms, by_rows.squared_norms, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(by_factors.inner, by_rows.inner, rtol=1e-11, atol=1e-13)
    by_factors, by_rows = (gradient_gram(objective, route=route) for route in ("vmap", "loop"))
    assert (by_factors.factored, by_rows.factored) == (len(MODELS[name][1]), 0)
    torch.testing.assert_close(by_factors.matrix, by_rows.matrix, rtol=1e-11, atol=1e-13)
    J = jacobian(objective, route="reverse")
    torch.testing.assert_close(ntk_matrix(objective).matrix, (J @ J.T).dense(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.bias", "0", "2"])
def test_frozen_parameters_and_restrictions_leave_the_other_one(frozen):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    data = [(torch.randn(4, 3, dtype=F64), torch.randint(0, 2, (4,)))]
    objective = Objective(model, cross_entropy(), data, penalty=l2(0.2))
    by_factors, by_rows = (gradient_gram(objective, route=route).matrix for route in ("vmap", "loop"))
    torch.testing.assert_close(by_factors, by_rows)
    J = jacobian(objective, restrict="*.weight" if frozen != "0.weight" else "*.bias")
    found = ntk_matrix(objective, restrict="*.weight" if frozen != "0.weight" else "*.bias")
    torch.testing.assert_close(found.matrix, (J @ J.T).dense())


def test_no_gradient_of_an_example_is_written_out(monkeypatch):
    objective = made("all")
    monkeypatch.setattr("frechet.analyze._examples.chunk_gradients", None)
    example_gradients(objective), gradient_gram(objective), ntk_matrix(objective)
    with pytest.raises(TypeError, match="not callable"):
        example_gradients(objective, route="loop")


def test_the_live_model_is_as_before():
    objective = made("used elsewhere")
    before = {n: dict(m.__dict__) for n, m in objective.model.named_modules()}
    example_gradients(objective), ntk_matrix(objective)
    assert all("forward" not in m.__dict__ for m in objective.model.modules())
    assert all(before[n].keys() == m.__dict__.keys() for n, m in objective.model.named_modules())


def test_outputs_in_groups_give_the_same_kernel(monkeypatch):
    objective = made("all")
    expected = ntk_matrix(objective).matrix
    monkeypatch.setattr("frechet.analyze._single_examples.CHUNK_BYTES", 1)
    torch.testing.assert_close(ntk_matrix(objective).matrix, expected)
