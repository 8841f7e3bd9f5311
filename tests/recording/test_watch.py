import pytest
import torch
import torch.nn.functional as F

from frechet.recording._program import Untraceable
from frechet.recording._replay import record
from recordings import played_back, same, vector


def test_writes_into_something_made_from_the_vector_are_played_back_in_order():
    def product(v):
        a = v[0] * 1.0
        b = a.view(2, 2)
        before = a * 3
        b[0] += 1
        a.mul_(2)
        return [b, before]

    _, found, expected = played_back(product, (4,))
    same(found, expected)


def test_a_constant_that_receives_the_vector_is_fresh_at_each_playback():
    M = vector(4, seed=3)

    def product(v):
        buffer = M.clone()
        view = buffer[1:3]
        view += v[0]
        buffer[0] = v[0][1]
        return [buffer * 2, view]

    replay, found, expected = played_back(product, (2,))
    same(found, expected)
    same(replay([vector(2, seed=1)]), expected)
    same(replay([vector(2, seed=1)]), expected)


def test_a_constant_that_was_read_before_it_received_the_vector_is_kept_as_it_was():
    M = vector(3, seed=3)

    def product(v):
        p = M * 2
        first = v[0] * p
        p.mul_(v[0].sum())
        return [first + p, v[0] * first]

    replay, found, expected = played_back(product, (3,))
    same(found, expected)
    same(replay([vector(3, seed=1)]), expected)


def test_a_constant_that_is_overwritten_by_an_operation_that_also_reads_it_is_kept_as_it_was():
    def product(v):
        p = torch.ones(3, dtype=torch.float64) * 3
        p.addcmul_(p, v[0])
        return [p]

    _, found, expected = played_back(product, (3,))
    same(found, expected)


def test_a_constant_that_is_overwritten_later_is_kept_as_it_was():
    def product(v):
        m = torch.ones(3, dtype=torch.float64)
        a = v[0] * m
        m.mul_(7)
        return [a, v[0] * m]

    _, found, expected = played_back(product, (3,))
    same(found, expected)


def test_views_are_told_apart_from_their_base():
    def product(v):
        a = v[0] * 2
        return [a[1:].t(), a.detach()[0], a.t()[:, 1]]

    _, found, expected = played_back(product, (3, 2))
    same(found, expected)


def test_shapes_may_be_changed_in_place():
    def product(v):
        a = v[0] * 2
        b = a.detach()
        a.unsqueeze_(0)
        return [a.sum(1), b * 3, a.squeeze_(0).t_()]

    _, found, expected = played_back(product, (3, 2))
    same(found, expected)


def test_memory_may_not():
    with pytest.raises(Untraceable, match="changes the memory"):
        record(lambda v: [(v[0] * 2).resize_(1)], [vector(3)])


def test_several_results_of_one_operation_keep_their_places():
    def product(v):
        a, b, c = v[0].split(1)
        values, _ = torch.stack([a, b, c]).flatten().reshape(3, 1).max(1)
        (only,) = v[0].split(3)
        return [c, values, only, *v[0].unbind(0)]

    _, found, expected = played_back(product, (3,))
    same(found, expected)


def test_random_draws_are_frozen():
    def product(v):
        return [F.dropout(v[0] * 2, 0.5)]

    replay = record(product, [vector(50)])
    v = vector(50, seed=1)
    assert torch.equal(replay([v])[0], replay([v])[0])
    assert 0 < int((replay([v])[0] == 0).sum()) < 50


@pytest.mark.parametrize(
    ("product", "why"),
    [
        (lambda v: [v[0] if float(v[0].sum()) > 0 else -v[0]], "reads values"),
        (lambda v: [v[0] * int(v[0].nonzero().shape[0])], "reads values"),
        (lambda v: [v[0] * torch.bernoulli(v[0].sigmoid())], "draws random numbers"),
        (lambda v: [v[0].mul_(2)], "writes into the vector"),
    ],
    ids=["branch", "count", "random", "in place"],
)
def test_what_is_no_fixed_sequence_of_operations_is_refused(product, why):
    with pytest.raises(Untraceable, match=why):
        record(product, [vector(3)])
