"""Parameters and vectors held together by two processes against one; what they compute is in `sharded_worker`."""

import builtins
from dataclasses import replace

import pytest
import torch
from torch import nn

from frechet.analyze import stability
from frechet.linalg import eigsh, gaussian_sketch, hadamard_sketch, pivoted_cholesky, sparse_sign_sketch, trace
from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.operators._constructors import block_diagonal, identity, kronecker
from frechet.operators.derivatives import hessian
from frechet.report._source import BadSource, load
from frechet.space import Group, Shard, Space
from ranks import on_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks("sharded_worker", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("model", ["attention", "odd"])
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-6)])
def test_products_of_sharded_parameters_are_those_of_one_process(ranks, model, dtype, bound):
    errors = ranks[0][f"{model} {dtype}"]
    assert len(errors) == 16
    assert max(errors.values()) < bound, errors


def test_checkpoints_run_again_without_hooks(ranks):
    assert ranks[0]["checkpointed"] < 1e-12


def test_algorithms_run_unchanged_on_pieces(ranks):
    found = ranks[0]["algorithms"]
    assert len(found["errors"]) == 27
    assert max(found["errors"].values()) < 1e-12, found["errors"]
    assert found["iterations"][0] == found["iterations"][1]
    assert found["law"]


def test_results_are_bit_for_bit_the_same_on_both_ranks(ranks):
    assert ranks[0]["algorithms"]["bits"] == ranks[1]["algorithms"]["bits"]


def test_the_operators_shape_is_global_and_vectors_are_local(ranks):
    assert [r["pieces"]["length"] for r in ranks] == [(37, 49, 49), (12, 49, 49)]
    assert ranks[0]["pieces"]["held"][:6] == ((2, 1, 2), (2,), (2,), (2,), (1, 12), (1,))
    assert ranks[1]["pieces"]["held"][:6] == ((1, 1, 2), (1,), (1,), (1,), (0, 12), (0,))
    assert ranks[1]["pieces"]["repr"] == "R^49 (11 blocks, float64, cpu, 12 on rank 1)"


def test_pieces_fit_together(ranks):
    for r in ranks:
        found = r["pieces"]
        assert found["drawn"] == {"rademacher": True, "gaussian": True, "sphere": True}
        assert all(found[name] for name in ("round trip", "vector", "restricted", "equal", "unsharded"))


def test_a_rank_may_hold_no_entry_at_all(ranks):
    assert [r["nothing here"][0] for r in ranks] == [4, 0]
    _, values, total, gap, x, R = ranks[0]["nothing here"]
    torch.testing.assert_close(values, torch.tensor([8.0, 4.5], dtype=torch.float64))  # 2 i^2 / 4
    assert total == pytest.approx(15.0, rel=1e-12)
    assert gap < 1e-12
    torch.testing.assert_close(x, torch.full((4,), 0.5, dtype=torch.float64))  # H x = gradient at x, a quadratic
    torch.testing.assert_close(R, ranks[1]["nothing here"][5])


def test_the_live_model_trains_as_if_nothing_had_been_computed(ranks):
    for r in ranks:
        found = r["trains"]
        assert len(found["gaps"]) == 4
        assert max(found["gaps"]) < 1e-12
        assert found["some"] == 8
        assert found["hooks"]
        assert found["frozen"]
        assert found["class"] == "FSDPOdd"


def test_a_check_sees_all_data_and_parameters(ranks):
    gap, *rest = ranks[0]["checks"]
    assert gap < 1e-12
    assert rest == [13, True, (), True, 2]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no group", "UnusableObjective: Objective: parameter 'conv.weight' is sharded over 2 processes, so they must"),
        (
            "mixed",
            "UnusableObjective: rank 0: Objective: either all trainable parameters must be sharded or none, got ",
        ),
        ("columns", "UnusableObjective: rank 0: Objective: parameters must be sharded by rows over one mesh dimension"),
        ("copies", "UnusableObjective: rank 0: Objective: parameters must be sharded by rows over one mesh dimension"),
        ("data", "NonFinite: rank 1: gradient: batch 0 gives a NaN or an infinity (its inputs hold NaN or infinity)"),
        ("model", "ValueError: hessian: rank 1, batch 0: squared_error: targets must have the outputs' shape (13, 2)"),
        ("vector", "NonFinite: rank 0: hessian: batch 0 gives a NaN or an infinity"),
        (
            "whole x",
            "ValueError: rank 0: Objective: x must be torch.float64 of shape (37,), got torch.float64 of shape",
        ),
        ("differentiable", "ValueError: Objective.value: x must not require grad where parameters are sharded; use"),
        ("eigsh start", "NonFinite: eigsh: x0 holds a NaN or an infinity"),
        ("examples", "UnusableObjective: Objective: this question needs whole parameters on every rank, got sharded"),
        ("afterwards", "nothing"),
    ],
)
def test_wrong_use_gives_the_same_sentence_on_all_ranks(ranks, name, told):
    assert ranks[0]["failures"][name].startswith(told)
    assert ranks[1]["failures"][name] == ranks[0]["failures"][name]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("other group", "UnusableObjective: rank 0: Objective: group must be the processes over which the parameters "),
        ("whole vector", "ValueError: ObjectiveHessian @ v: expected shape ({n},) or ({n}, k) for R^49 (11 blocks, "),
        ("start", "ValueError: lanczos: v must have shape ({n},), got (49,)"),
        ("matrix", "ValueError: from_matrix: must be given whole vectors, got the sharded space R^49"),
        ("diagonal", "ValueError: from_diagonal: must be given whole vectors, got the sharded space R^49"),
        ("factors", "ValueError: from_factors: must be given whole vectors, got the sharded space R^49"),
        ("nystrom", "ValueError: nystrom: must be given whole vectors, got the sharded space R^49"),
        ("jacobi", "ValueError: jacobi: must be given whole vectors, got the sharded space R^49"),
        ("slices", "ValueError: loss_slices: must be given whole vectors, got the sharded space R^49"),
    ],
)
def test_wrong_use_names_what_this_rank_has(ranks, name, told):
    for r, n in zip(ranks, (37, 12), strict=True):
        assert r["failures"][name].startswith(told.replace("{n}", str(n)))


@pytest.mark.parametrize("rows", [((0, 2), (0, 1)), ((2, 2),), ((-1, 2),)])
def test_a_shard_must_lie_in_the_blocks(rows):
    with pytest.raises(ValueError, match="Space: shard must have rows"):
        Space(("w",), ((3, 2),), shard=Shard(Group(None, 0, 2), rows))


def test_a_block_without_rows_cannot_be_sharded():
    with pytest.raises(ValueError, match=r"Space: shard must have rows of a block \(\), got 1 from row 0 on"):
        Space(("w",), ((),), shard=Shard(Group(None, 0, 2), ((0, 1),)))


def test_pieces_are_cut_and_stored_like_vectors():
    space = Space(("w", "b"), ((3, 2), (3,)), torch.float64, shard=Shard(Group(None, 1, 2), ((2, 1), (2, 1))))
    V = space.unsharded.zeros(4) + torch.arange(9.0, dtype=torch.float64)[:, None]
    assert space.own(V)[:, 0].tolist() == [4.0, 5.0, 8.0]
    assert space.own(V).T.is_contiguous()
    assert space.units(range(4, 6)).tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert space.flatten(space.unflatten(V[:3, 0])).tolist() == [0.0, 1.0, 2.0]
    assert space.with_dtype(torch.float32).shard == space.shard
    with pytest.raises(ValueError, match=r"block 'w' must have shape \(1, 2\), got \(3, 2\)"):
        space.flatten({"w": torch.zeros(3, 2).double(), "b": torch.zeros(3).double()})


def in_pieces(space):
    return replace(space, shard=Shard(Group(None, 0, 2), tuple((0, 1) for _ in space.names)))


SPACE = Space(("w",), ((4,),))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("gaussian_sketch", lambda s: gaussian_sketch(s, 2, seed=0)),
        ("sparse_sign_sketch", lambda s: sparse_sign_sketch(s, 2, seed=0, nonzeros=1)),
        ("hadamard_sketch", lambda s: hadamard_sketch(s, 2, seed=0)),
        ("kronecker", lambda s: kronecker(identity(SPACE), identity(s))),
        ("block_diagonal", lambda s: block_diagonal(identity(SPACE), identity(s))),
        ("pivoted_cholesky", lambda s: pivoted_cholesky(identity(s), rank=1, damping=1.0)),
    ],
)
def test_what_needs_whole_vectors_refuses_pieces(name, make):
    make(SPACE)
    with pytest.raises(ValueError, match=f"^{name}: must be given whole vectors, got the sharded space R.4"):
        make(in_pieces(SPACE))


def test_stability_and_the_report_refuse_pieces(tmp_path):
    objective = Objective(nn.Linear(1, 1), squared_error(), [(torch.ones(2, 1), torch.ones(2, 1))])
    top, found = eigsh(hessian(objective), 1, seed=0), trace(hessian(objective), method="exact")
    object.__setattr__(objective, "space", in_pieces(objective.space))
    with pytest.raises(ValueError, match=r"^stability: must be given whole vectors"):
        stability(objective, batch_sizes=[1], trace=found, frobenius=found, top=top, seed=0)
    file = tmp_path / "maker.py"
    file.write_text("import builtins\nmake = lambda: builtins.sharded_objective\n")
    builtins.sharded_objective = objective
    try:
        with pytest.raises(BadSource, match="must return an objective with whole parameters, got sharded ones"):
            load(f"{file}:make")
    finally:
        del builtins.sharded_objective
