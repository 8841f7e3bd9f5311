import pytest
import torch
from torch import nn

from frechet import Objective, cross_entropy
from frechet.objective.criteria import binary_cross_entropy
from frechet.operators.derivatives import kfac
from frechet.operators.derivatives._kfac_columns import roots_of


@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0, 200.0])
@pytest.mark.parametrize("kind", ["fisher", "gauss_newton"])
@pytest.mark.parametrize("made", [cross_entropy, binary_cross_entropy])
def test_confident_outputs_in_single_precision_have_the_roots_of_double(made, kind, scale):
    g = torch.Generator().manual_seed(0)
    y = scale * torch.randn(50, 5, generator=g)
    targets = torch.randint(0, 5, (50,), generator=g) if made is cross_entropy else (y > 0).float()
    single = torch.stack(list(roots_of(made(), y, targets, kind)), 2)  # (50, 5, columns)
    unit = torch.eye(5, dtype=torch.float64).unsqueeze(1).expand(-1, 50, -1)
    product = made().hessian_product if kind == "gauss_newton" else made().fisher_product
    C = torch.stack([product(y.double(), targets, u) for u in unit], 2)
    torch.testing.assert_close(torch.einsum("nik,njk->nij", single, single).double(), C, rtol=1e-5, atol=1e-7)


def test_a_confident_classifier_in_single_precision_has_factors():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.mul_(20)
    X, y = torch.randn(40, 4), torch.randint(0, 3, (40,))
    single = kfac(Objective(model, cross_entropy(), [(X, y)])).dense()
    double = kfac(Objective(model, cross_entropy(), [(X, y)], dtype=torch.float64)).dense()
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-7)
