from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from frechet.recording._batch import begun_anew, own, seen, without_numbers
from frechet.recording._copies import copies, extent, fills_its_memory, place_of
from frechet.recording._program import Untraceable

X = torch.arange(24.0).view(6, 4)
Z = torch.randn(2, 3, dtype=torch.complex64)
Pair = namedtuple("Pair", "a b")
BOX = object()

DIFFERENT = [
    (X, X.double()),
    (X, X[:5]),
    (X, X.t().contiguous().t()),
    (X, X.clone().requires_grad_()),
    (Z, Z.conj()),
    (Z.imag, Z.conj().imag),
    ((X, X), (X, X.clone())),
    ((X[:3], X[2:5]), (X[:3], X[3:])),
    ([X], (X,)),
    ((X, X), Pair(X, X)),
    ({"a": X, "b": 1}, {"b": 1, "a": X}),
    ({"a": X}, OrderedDict(a=X)),
    ({1: X}, {True: X}),
    ({"a": [X, [X]]}, {"a": [[X], X]}),
    (True, 1),
    (1, 1.0),
    (0.0, -0.0),
    (1.0, np.float64(1.0)),
    ("1", b"1"),
    (None, 0),
    (slice(1), slice(2)),
    (torch.float32, torch.float64),
    (object(), object()),
    (np.ones(2), np.ones(2)),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_these_are_not_the_same(one, other):
    assert seen(one)[0].same(seen(one)[0])
    assert not seen(one)[0].same(seen(other)[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (X, X.clone()),
        (X[1:3], X[3:5]),
        ((X[:3], X[2:5]), (X[1:4], X[3:6])),
        ({"a": X, "n": [float("nan"), "b"]}, {"a": X + 1, "n": [float("nan"), "b"]}),
        (BOX, BOX),
        (X[:1].expand(5, 4), X[2:3].expand(5, 4)),
    ],
)
def test_these_are_the_same_whatever_their_numbers(one, other):
    assert seen(one)[0].same(seen(other)[0])


def test_objects_count_by_identity_but_not_for_the_form():
    one, other = seen([object(), X])[0], seen([object(), X])[0]
    assert one.same_form(other)
    assert not one.same(other)


@pytest.mark.parametrize("make", [lambda: nn.Parameter(X), lambda: X.to_sparse(), lambda: X.to_mkldnn()])
def test_tensors_of_other_kinds_are_not_recorded(make):
    with pytest.raises(Untraceable, match="its batch holds a tensor of type"):
        seen([make()])


LAYOUTS = [
    X,
    X[1:3],
    X.t(),
    X[:, 1:3],
    X[::2],
    X[:1].expand(3, 4),
    X[0, 0],
    X[:0],
    Z.conj(),
    Z.conj().imag,
    Z[1:].conj(),
]


@pytest.mark.parametrize("t", LAYOUTS)
def test_copies_keep_everything_but_the_place(t):
    [copy] = copies([t])
    assert torch.equal(copy, t)
    assert (copy.shape, copy.stride(), copy.is_conj(), copy.is_neg()) == (t.shape, t.stride(), t.is_conj(), t.is_neg())
    assert extent(copy)[0] == 0 or t.is_neg()
    assert copy.untyped_storage().data_ptr() != t.untyped_storage().data_ptr() or not t.numel()


def test_copies_overlap_as_their_originals_do():
    a, b, c = copies([X[:3], X[2:5], X[5:]])
    assert a.untyped_storage()._cdata == b.untyped_storage()._cdata != c.untyped_storage()._cdata
    b[0].fill_(-1.0)
    assert a[2].tolist() == [-1.0] * 4
    one, same_one = copies([X, X])
    assert place_of(one) == place_of(same_one)
    assert c.untyped_storage().nbytes() == 4 * 4


def test_a_batch_of_ones_own_is_rebuilt_as_it_was():
    batch = ({"x": X[2:4], "n": 3}, [Pair(X[0], "a"), BOX])
    copied, tensors = own(batch)
    assert copied[0]["n"] == 3
    assert copied[1][1] is BOX
    assert type(copied[1][0]) is Pair
    assert [torch.equal(a, b) for a, b in zip(tensors, seen(batch)[1], strict=True)] == [True, True]
    assert copied[0]["x"] is tensors[0]
    assert all(map(fills_its_memory, tensors))
    assert begun_anew(tensors) is tensors
    assert begun_anew([X[2:]])[0].storage_offset() == 0


def test_a_stand_in_has_the_form_and_no_memory():
    stands = without_numbers({"x": X, "y": (torch.tensor(3), X[:0], "a")})
    assert [tuple(t.shape) for t in (stands["x"], *stands["y"][:2])] == [(6, 4), (), (0, 4)]
    assert stands["y"][2] == "a"
    assert stands["x"].untyped_storage().nbytes() == 4
