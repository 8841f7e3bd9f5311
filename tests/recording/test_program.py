"""Recordings that compute their constants anew: played back with another vector and batch."""

import pytest
import torch
import torch.nn.functional as F

from frechet.recording._program import Untraceable
from frechet.recording._replay import record
from frechet.recording._watch import Watch
from recordings import same, vector

W, SHARED = vector(3, 3, seed=8), vector(3, seed=9)


def anew(product, *shapes, batch=((4, 3),)):
    """Compare a replay of `product(v, x)` with the product on another batch, twice; returns the replay."""
    first, other = ([vector(*s, seed=seed) for s in batch] for seed in (3, 4))
    replay = record(lambda v: product(v, *first), [vector(*s) for s in shapes], batch=first)
    assert not replay.constants
    v = [vector(*s, seed=1) for s in shapes]
    for _ in range(2):
        same(replay.at(other)(v), product([b.clone() for b in v], *[b.clone() for b in other]))
    same(replay.at(first)(v), product([b.clone() for b in v], *first))
    return replay


def test_constants_are_those_of_the_batch_at_hand():
    replay = anew(lambda v, x: [torch.tanh(x @ W) @ v[0], x.sum() * v[0]], (3,))
    assert replay.bytes == W.nbytes


def test_what_the_vector_does_not_need_is_not_computed():
    replay = anew(lambda v, x: [(x @ W).sum() * v[0], ((x @ W).exp() * 0).new_zeros(3) + v[0]], (3,))
    assert all("exp" not in str(o) for o in replay.before.objects)


def test_numbers_of_the_batch_may_decide():
    def product(v, x):
        assert float(x.abs().max()) < 100
        kept = x[x[:, 0].abs() < 100]
        return [kept.nonzero().shape[0] * v[0] + kept.sum(0)]

    anew(product, (3,))


def test_constants_that_are_overwritten_later_are_read_before():
    def product(v, x):
        m = x * 2
        a = v[0] * m
        half = m[:2]
        b = v[0] * half
        m.mul_(7)
        m[1].sub_(1)
        return [a, b, v[0] * m, v[0] * half]

    anew(product, (3,))


def test_a_constant_may_receive_the_vector():
    def product(v, x):
        buffer = x * 2
        before = v[0] * buffer[0]
        buffer[1:3] += v[0]
        whole = torch.ones_like(x)
        whole.mul_(v[0])
        other = x.exp()
        other.addcmul_(other, v[0].expand(4, 3))
        return [buffer * 2, before, whole, other]

    anew(product, (3,))


def test_shapes_may_be_changed_in_place():
    def product(v, x):
        a = x * 2
        a.t_()
        b = a.unsqueeze_(0).squeeze(0)
        c = (x * 3).transpose_(0, 1)
        return [b.t() * v[0], c.t() * v[0]]

    anew(product, (3,))


def test_memory_that_is_filled_is_filled_anew():
    def product(v, x):
        columns = torch.zeros_like(x.t())  # not contiguous
        columns[0] += x[:, 0]
        rows = x.new_full((4, 3), 2.5)
        empty = torch.empty_like(x).copy_(x).mul_(3)
        strided = torch.ones_like(x.t()).sub_(columns)
        counted = torch.zeros(3, dtype=torch.int64).add_(torch.arange(3))
        return [columns.t() * v[0], rows * v[0], empty * v[0], strided.t() * v[0] + counted, torch.zeros_like(v[0])]

    replay = anew(product, (3,))
    assert replay.bytes == 0


def test_what_was_there_is_left_as_it_was():
    counter, mask = torch.zeros(3, dtype=torch.float64), SHARED.clone()

    def product(v, x):
        counter.add_(1)
        mask[1:].mul_(x[0, 1:])
        return [counter * v[0] * mask.sum()]

    x = [vector(4, 3, seed=3)]
    replay = record(lambda v: product(v, *x), [vector(3)], batch=x)
    left = counter.clone(), mask.clone()
    v = [vector(3, seed=1)]
    expected = v[0] * (SHARED[0] + (SHARED * x[0][0])[1:].sum())
    for _ in range(2):
        same(replay.at(x)(v), [expected])
    assert torch.equal(counter, left[0])
    assert torch.equal(mask, left[1])


def test_views_of_what_was_there_are_no_steps():
    replay = anew(lambda v, x: [x @ W.t()[1:].t() @ v[0], W.expand(2, 3, 3)[0].detach() @ v[0][:1].expand(3)], (2,))
    assert replay.before.steps == 1


def test_two_tensors_of_a_batch_may_be_views_of_one():
    tokens = vector(5, 3, seed=3)
    batch = [tokens[:-1], tokens[1:]]
    replay = record(lambda v: [batch[0] * v[0] + batch[1].exp()], [vector(3)], batch=batch)
    other = [vector(4, 3, seed=6), vector(4, 3, seed=7)]
    v = [vector(3, seed=1)]
    same(replay.at(other)(v), [other[0] * v[0] + other[1].exp()])


def test_results_that_do_not_depend_on_the_vector_are_made_anew_too():
    anew(lambda v, x: [x * 2, x.sum() * v[0], torch.tensor([1.0, 2.0]).double()], (3,))


@pytest.mark.parametrize(
    ("product", "why"),
    [
        (lambda v, x: [F.dropout(x, 0.5) @ v[0]], "draws random numbers, which would be others each time"),
        (lambda v, x: [torch.rand_like(x) @ v[0]], "draws random numbers"),
        (lambda v, x: [x.mul_(2) @ v[0]], "writes into the batch"),
        (lambda v, x: [v[0] if float(v[0].sum()) > 0 else -v[0]], "reads values that depend on the vector"),
    ],
    ids=["dropout", "noise", "in place", "branch"],
)
def test_what_would_not_be_the_same_map_is_refused(product, why):
    x = vector(4, 3, seed=3)
    with pytest.raises(Untraceable, match=why):
        record(lambda v: product(v, x), [vector(3)], batch=[x])


def test_nothing_is_held_while_it_is_recorded():
    x = vector(400, 3, seed=3)
    watch = Watch([vector(3)], 0, (), [x])
    with watch:
        (x * 2).exp()
    given, *made = (storage.expired() for storage, _ in watch.before.made.values())
    assert (given, made) == (False, [True, True])
