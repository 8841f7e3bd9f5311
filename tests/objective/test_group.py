"""Two processes with a shard each against one process with all data; what they compute is in `group_worker`."""

import pytest
import torch

from frechet.errors import UnusableObjective
from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.space import Group
from ranks import on_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks("group_worker", tmp_path_factory.mktemp("ranks"), last=True)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-6)])
def test_products_of_unequal_and_padded_shards_are_those_of_all_data(ranks, dtype, bound):
    errors = ranks[0][dtype]["errors"]
    assert len(errors) == 14
    assert max(errors.values()) < bound, errors


def test_a_rank_without_a_batch_takes_part(ranks):
    assert max(ranks[0]["empty"]["errors"].values()) < 1e-12
    assert max(ranks[0]["differentiable empty"]["errors"]) < 1e-12


def test_the_mean_of_the_ranks_means_would_be_seen(ranks):
    assert ranks[0]["plain"] > 0.1


@pytest.mark.parametrize(
    "name", ["float64", "float32", "empty", "differentiable", "differentiable empty", "algorithms"]
)
def test_results_are_bit_for_bit_the_same_on_both_ranks(ranks, name):
    assert ranks[0][name]["bits"] == ranks[1][name]["bits"]


def test_a_pass_can_be_shared_out_by_batch_or_example(ranks):
    assert max(ranks[0]["dealt"]["errors"].values()) < 1e-12
    counts = [r["dealt"]["counts"] for r in ranks]
    assert [c["list by batch"] for c in counts] == [c["lazy by batch"] for c in counts] == [(2, None), (2, None)]
    assert [c["list by example"] for c in counts] == [c["lazy by example"] for c in counts] == [(4, None), (4, None)]
    assert all(c["subsample by batch"][1] == c["subsample by example"][1] == 11 for c in counts)


def test_the_value_can_be_differentiated_three_times(ranks):
    assert max(ranks[0]["differentiable"]["errors"]) < 1e-12


def test_algorithms_run_unchanged(ranks):
    assert max(ranks[0]["algorithms"]["errors"]) < 1e-7
    assert ranks[0]["algorithms"]["law"]


def test_a_model_in_data_parallel_is_taken_out_and_said_so(ranks):
    for rank, found in enumerate(ranks):
        found = found["wrapped"]
        assert found["error"] < 1e-12
        assert "Attention out of DistributedDataParallel" in found["repr"]
        assert f"rank {rank} of 2" in found["repr"]
        value, *numbers = found["alone"]
        assert found["check"][0] == pytest.approx(value, rel=1e-12)
        assert found["check"][1:] == (3, *numbers[1:3], 2, "DistributedDataParallel")
        assert numbers[3:] == [1, None]


def test_questions_about_examples_see_those_of_all_ranks(ranks):
    found = ranks[0]["analyses"]
    assert max(found["errors"]) < 1e-10
    assert found["errors"] == ranks[1]["analyses"]["errors"]
    gap, examples, error = found["drawn"]
    assert gap < 1e-5
    assert examples == 23
    assert error < 1e-12


def test_a_population_is_counted_over_the_ranks(ranks):
    assert ranks[0]["analyses"]["population"] == (23, None, None)


def test_every_rank_draws_its_own_labels(ranks):
    found = ranks[0]["monte carlo"]
    assert found == ranks[1]["monte carlo"]
    assert found["repeats"]
    assert 0.3 < found["z"] < 2.5
    assert 0.3 < found["variance"] < 0.8  # a half, and 1 if both drew alike


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nan", "NonFinite: rank 1: hessian: batch 1 gives a NaN or an infinity (its inputs hold NaN"),
        ("nan in the point", "NonFinite: rank 0: gradient: batch 0 gives a NaN or an infinity (the point holds"),
        ("model", "RuntimeError: value: rank 1, batch 1: KeyError: 'lost'"),
        ("shape", "RuntimeError: gradient: rank 1, batch 0: mat1 and mat2 shapes cannot be multiplied"),
        ("check", "UnusableObjective: check: the model or the data raised RuntimeError: value: rank 1, batch 1: KeyE"),
        ("empty", "ValueError: value: the data of any of the 2 ranks must hold at least one term that counts"),
        ("point", "ValueError: Objective: the point x must be the same on all ranks, but 0 and 1 differ; send rank 0"),
        ("vectors", "ValueError: hessian: the vectors must be the same on all ranks, but those of ranks 0 and 1 diff"),
        ("buffers", "ValueError: Objective: buffers and frozen parameters must be the same on all ranks"),
        ("training", "UnusableObjective: rank 1: Objective: module '1' (Dropout) drops units at random"),
        ("shapes", "ValueError: Objective: the parameters' names, shapes and type must be the same on all ranks"),
        ("criterion", "ValueError: Objective: the criterion's class must be the same on all ranks"),
        ("no model", "TypeError: rank 1: Objective: model must be a torch.nn.Module, got int"),
        ("one-shot data", "UnusableObjective: rank 1: Objective: data must be iterable more than once"),
        ("x", "ValueError: rank 0: Objective: x must be torch.float64 of shape (8,), got torch.float64 of shape (5,)"),
        ("jacobian", "ValueError: jacobian: its rows are the examples, and those of a group lie on 2 processes"),
        ("ntk", "ValueError: jacobian: its rows are the examples"),
        ("sum", "ValueError: Objective + other: both must be objectives of the same group of processes, or of none"),
        ("dealt twice", "ValueError: Objective.sharded: must be an objective of one process, got one with group="),
        ("dealt oddly", "ValueError: Objective.sharded: by must be 'batch' or 'example', got 'token'"),
        ("dealt once only", "UnusableObjective: rank 0: Objective: data must be iterable more than once"),
        ("pieces", "UnusableObjective: rank 1: Objective.in_pieces: module '1' (BatchNorm1d) normalizes by"),
        ("share", "ValueError: Objective: each rank must hold the same share of its population, but rank 0 has 4 of"),
    ],
)
def test_what_fails_on_one_rank_raises_on_all_and_nobody_waits(ranks, name, told):
    assert ranks[0]["failures"][name].startswith(told)
    assert ranks[1]["failures"][name] == ranks[0]["failures"][name]


def test_a_group_goes_on_after_a_failure(ranks):
    assert [r["failures"]["afterwards"] for r in ranks] == [0.0, 0.0]


def test_a_rank_that_has_ended_is_told_of(ranks):
    assert ranks[0]["lost"].startswith("LostRank: rank 0 of 2: another process of the group ended or did not answer")


def test_the_default_group_has_two_names(ranks):
    assert ranks[0]["group"] == (True, "Group(processes=None, rank=0, size=2)")


def test_a_group_needs_an_initialized_process_group():
    data = [(torch.ones(2, 1), torch.ones(2, 1))]
    with pytest.raises(ValueError, match=r"torch\.distributed must be initialized first"):
        Objective(torch.nn.Linear(1, 1), squared_error(), data, group="world")
    with pytest.raises(ValueError, match=r"torch\.distributed must be initialized first"):
        Group.of("everyone")


def test_a_model_in_pieces_is_refused():
    class FullyShardedDataParallel(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(FullyShardedDataParallel(1, 1))
    with pytest.raises(UnusableObjective, match=r"got module '0' \(FullyShardedDataParallel\); load its full state"):
        Objective(model, squared_error(), [(torch.ones(2, 1), torch.ones(2, 1))])
