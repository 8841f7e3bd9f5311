import pytest
import torch

from frechet.recording._replay import record
from recordings import played_back, same, vector


def test_what_does_not_depend_on_the_vector_is_done_once():
    calls = []
    M = vector(4, 3, seed=5)

    def product(v):
        calls.append(None)
        return [torch.tanh(M).exp() @ v[0]]

    replay, found, expected = played_back(product, (3,))
    same(found, expected)
    assert len(calls) == 2
    assert replay.steps == 1


def test_steps_that_nobody_reads_are_dropped():
    M = vector(3, 3)

    def product(v):
        _unused = (M @ v[0]).sin()
        return [v[0] * 2]

    replay, found, expected = played_back(product, (3,))
    same(found, expected)
    assert replay.steps == 1
    assert not replay.constants


def test_a_result_that_does_not_depend_on_the_vector_is_a_constant():
    M = vector(3)
    _, found, expected = played_back(lambda v: [M * 2, torch.zeros_like(v[0])], (3,))
    same(found, expected)


def test_a_block_goes_through_together():
    M = vector(4, 3)
    replay = record(lambda v: [M @ v[0], v[1].t() @ M.t()], [vector(3), vector(3, 2)])
    V = [vector(5, 3, seed=2), vector(5, 3, 2, seed=3)]
    together = replay.block(V)
    for i in range(5):
        same([t[i] for t in together], replay([b[i] for b in V]))


def test_it_says_what_it_holds():
    M = vector(100, 100)
    replay = record(lambda v: [M @ v[0], M.t() @ v[0]], [vector(100)])
    assert replay.bytes == M.numel() * 8
    with pytest.raises(MemoryError):
        record(lambda v: [M @ v[0]], [vector(100)], most=M.numel() * 8 - 1)


def test_batches_of_one_shape_share_their_code():
    replays = [record(lambda v, i=i: [vector(3, 3, seed=i) @ v[0]], [vector(3)]) for i in range(2)]
    assert replays[0].run is replays[1].run
    assert replays[0].code == replays[1].code
