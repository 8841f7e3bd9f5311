import pytest
import torch
from torch import nn

from frechet.errors import UnusableObjective
from frechet.objective import Objective
from frechet.objective._pieces import rows_of
from frechet.objective.criteria import squared_error
from frechet.operators.derivatives import gauss_newton, hessian
from laws import block, close
from objective_cases import (
    MAKERS,
    causal_language_model,
    hessian_of,
    mlp,
    prepared,
    ragged,
    randn,
    tanh_mlp,
)


@pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("examples", [1, 2, 100])
def test_pieces_add_up_to_the_whole(make, examples):
    f = prepared(make)[0].objective
    H = hessian(f.in_pieces(examples))
    V = block(H.domain, 2, 1)
    close(H @ V, hessian_of(make) @ V)


def test_pieces_are_no_larger_than_asked_for():
    f = prepared(tanh_mlp)[0].objective.in_pieces(2)
    assert [len(b.targets) for b in f.batches()] == [2, 2, 1]
    g = prepared(causal_language_model)[0].objective.in_pieces(2)
    assert [len(b.targets) for b in g.batches()] == [2, 1, 1]
    assert all(len(b.inputs["attention_mask"]) == len(b.targets) for b in g.batches())
    close(gauss_newton(g).dense(), gauss_newton(prepared(causal_language_model)[0].objective).dense())


def test_what_belongs_to_no_example_stays_whole():
    tree = {"x": torch.zeros(4, 3), "shared": torch.zeros(2, 4), "scale": torch.tensor(2.0), "name": "a"}
    cut = rows_of(tree, slice(1, 3), 4)
    assert cut["x"].shape == (2, 3)
    assert cut["shared"].shape == (2, 4)
    assert cut["name"] == "a"


def test_bad_requests_are_told():
    f = prepared(tanh_mlp)[0].objective
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match="in_pieces: examples must be a positive int"):
            f.in_pieces(wrong)
    coupled = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    with pytest.raises(UnusableObjective, match=r"Objective.in_pieces: module '1' .* normalizes by the statistics"):
        Objective(coupled, squared_error(), ragged(randn(5, 2), randn(5, 2))).in_pieces(2)
    seeded = Objective(mlp(nn.Dropout(0.5)), squared_error(), ragged(randn(5, 2), randn(5, 2)), dropout_seed=0)
    with pytest.raises(ValueError, match="with dropout_seed each batch draws its masks"):
        seeded.in_pieces(2)
