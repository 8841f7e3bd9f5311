import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frechet.space import Space, euclidean, generator
from frechet.space import _space as module

F32, F64 = torch.float32, torch.float64
shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=5).map(tuple)
spaces = st.builds(
    lambda s, dtype: Space(tuple(f"layer.{i}" for i in range(len(s))), s, dtype), shapes, st.sampled_from([F32, F64])
)
quick = settings(max_examples=60, deadline=None, derandomize=True)


@given(space=spaces)
@quick
def test_flatten_undoes_unflatten(space):
    v = space.random(0, seed=1, kind="gaussian")
    tree = space.unflatten(v)
    assert list(tree) == list(space.names)
    assert tuple(tuple(t.shape) for t in tree.values()) == space.shapes
    assert torch.equal(space.flatten(tree), v)
    assert torch.equal(space.flatten(dict(reversed(tree.items()))), v)
    assert space == Space.of(tree) or not tree


@given(space=spaces)
@quick
def test_blocks_lie_one_after_the_other(space):
    v = torch.arange(space.dim, dtype=space.dtype)
    end = 0
    for name, t in space.unflatten(v).items():
        assert space.block(name).start == end
        assert torch.equal(v[space.block(name)], t.reshape(-1))
        end = space.block(name).stop
    assert end == space.dim == sum(space.sizes)


@given(space=spaces, data=st.data())
@quick
def test_a_restriction_keeps_the_blocks_in_order(space, data):
    kept = data.draw(st.lists(st.sampled_from(space.names), unique=True)) if space.names else []
    sub = space.restrict(kept)
    assert sub.names == tuple(n for n in space.names if n in kept)
    v = torch.arange(space.dim, dtype=space.dtype)
    parts = [v[space.block(n)] for n in sub.names]
    assert torch.equal(v[space.indices(sub)], torch.cat(parts) if parts else v[:0])
    assert space.restrict("*").names == space.names if space.names else True


@given(k=st.integers(0, 5), more=st.integers(0, 5), seed=st.integers(0, 2**40), n=st.integers(0, 20))
@quick
def test_more_probes_never_change_the_first_ones(k, more, seed, n):
    for dtype in (F32, F64):
        space = euclidean(n, dtype)
        for kind in ("rademacher", "gaussian", "sphere"):
            few, many = space.random(range(k), seed, kind), space.random(range(k + more), seed, kind)
            assert many.shape == (n, k + more)
            assert torch.equal(few, many[:, :k])
            assert torch.equal(space.random(range(k, k + more), seed, kind), many[:, k:])
            assert all(torch.equal(space.random(j, seed, kind), many[:, j]) for j in range(k + more))


def test_probes_are_the_same_in_every_dtype_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    for kind in ("rademacher", "gaussian", "sphere"):
        assert torch.equal(euclidean(9, F64).random(3, 7, kind).float(), euclidean(9).random(3, 7, kind))
    assert torch.equal(torch.get_rng_state(), before)


def test_probes_have_mean_zero_and_unit_covariance():
    space, k = euclidean(6, F64), 20_000
    for kind in ("rademacher", "gaussian", "sphere"):
        Z = space.random(range(k), 5, kind)
        # 5 standard deviations of a mean of k products with variance at most 2
        assert float((Z @ Z.T / k - torch.eye(6)).abs().max()) < 5 * math.sqrt(2 / k)
        assert float(Z.mean(1).abs().max()) < 5 / math.sqrt(k)
    signs, sphere = space.random(range(9), 1), space.random(range(9), 1, "sphere")
    assert bool((signs.abs() == 1).all())
    assert torch.allclose(sphere.square().sum(0), torch.full((9,), 6.0, dtype=F64))


def test_streams_of_a_seed_differ():
    streams = [(5,), (5, 0), (5, 0, 0), (5, 1), (6,), (6, 0), (0,), (0, 0)]
    assert len({generator(*s).initial_seed() for s in streams}) == len(streams)
    assert torch.equal(torch.rand(3, generator=generator(5, 1)), torch.rand(3, generator=generator(5, 1)))


def test_spaces_compare_by_value_with_cuda_as_its_first_device():
    assert Space(("a",), ((2,),), F32, torch.device("cuda")) == Space(("a",), ((2,),), F32, torch.device("cuda:0"))
    assert hash(Space(("a",), ((2,),), F32, "cuda")) == hash(Space(("a",), ((2,),), F32, "cuda:0"))
    assert Space(["a"], [[2]]) == Space(("a",), ((2,),))
    for other in (("b", (2,), F32, "cpu"), ("a", (3,), F32, "cpu"), ("a", (2,), F64, "cpu"), ("a", (2,), F32, "meta")):
        assert Space((other[0],), (other[1],), *other[2:]) != Space(("a",), ((2,),))
    space = Space(("a", "b"), ((2, 3), ()), F64)
    assert repr(space) == "R^7 (2 blocks, float64, cpu)"
    assert pickle.loads(pickle.dumps(space)) == space
    assert space.with_dtype(F32).dtype == F32


@pytest.fixture(scope="module")
def large():
    g = torch.Generator().manual_seed(0)
    return torch.rand(10_000_000, generator=g), torch.rand(10_000_000, generator=g)


def test_reductions_of_ten_million_float32_entries_are_accurate(large):
    u, v = large
    space = euclidean(u.numel())
    exact = torch.dot(u.double(), v.double())
    norm = u.double().norm()
    assert abs(float(space.inner(u, v) / exact - 1)) < 1e-6
    assert abs(float(space.norm(u) / norm - 1)) < 1e-6
    V = torch.stack([u, v]).T
    gram = space.gram(V, V[:, :1])
    assert torch.allclose(gram[:, 0], torch.stack([norm**2, exact]), rtol=1e-6)
    assert torch.allclose(space.norm(V), torch.stack([norm, v.double().norm()]), rtol=1e-6)
    for result in (gram, space.inner(u, v), space.norm(u), space.norm(V)):
        assert result.dtype == F64
    # what this is for: the plain norm runs through in float32
    assert abs(float(torch.linalg.vector_norm(u) / norm - 1)) > 1e-5


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("n", [0, 1, 5, module.CHUNK - 1, module.CHUNK, 2 * module.CHUNK + 3])
def test_reductions_agree_with_float64_at_every_size_and_layout(n, dtype):
    space = euclidean(n, dtype)
    V, W = space.random(range(3), 1, "gaussian"), space.random(range(2), 2, "gaussian")
    rtol = 2e-6 if dtype == F32 else 1e-13
    for X in (V, V.contiguous(), torch.repeat_interleave(V, 2, dim=1)[:, ::2]):
        gram = X.double().T @ W.double()
        assert torch.allclose(space.gram(X, W), gram, rtol=rtol, atol=rtol * max(n, 1))
        assert torch.allclose(space.norm(X), X.double().square().sum(0).sqrt(), rtol=rtol)
        if n:
            assert torch.allclose(space.inner(X[:, 0], W[:, 0]), gram[0, 0], rtol=rtol, atol=rtol * n)
    assert space.norm(V[:, :0]).shape == (0,)
    assert space.gram(V[:, :0], W).shape == (0, 2)
    assert space.zeros(4).shape == (n, 4)
    assert space.zeros(4).T.is_contiguous()
    assert space.zeros().shape == (n,)


def blocks(dtype):
    space = euclidean(100, dtype)
    G = space.random(range(6), 3, "gaussian").double()
    decay = torch.logspace(0, -5 if dtype == F32 else -12, 6, dtype=F64)
    steep = torch.linalg.qr(G)[0] * decay @ torch.linalg.qr(G[:6])[0]
    return {
        "well conditioned": (G, 6),
        "ill conditioned": (steep, 6),
        "repeated column": (G[:, [0, 1, 1, 2, 0]], 3),
        "rank one": (G[:, :1] * torch.ones(4), 1),
        "zero": (torch.zeros(100, 3), 0),
        "a zero column": (torch.stack([G[:, 0], 0 * G[:, 0]], 1), 1),
        "one column": (G[:, :1], 1),
        "no columns": (G[:, :0], 0),
        "huge": (1e18 * G, 6),
        "tiny": (1e-18 * G, 6),
        "wider than high": (G[:4], 4),
        "wide and rank two": ((torch.outer(torch.arange(4.0), torch.ones(6)) + torch.arange(6.0)), 2),
        "one row": (torch.tensor([[3.0, 4.0]]), 1),
        "no rows": (torch.zeros(0, 3), 0),
    }


@pytest.mark.parametrize("rows", [1 << 16, 7, 1])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", blocks(F64))
def test_orthonormalize_factors_every_block(name, dtype, rows, monkeypatch):
    monkeypatch.setattr(module, "QR_ROWS", rows)
    V, rank = blocks(dtype)[name]
    V = V.to(dtype)
    space = euclidean(len(V), dtype)
    Q, R = space.orthonormalize(V)
    assert Q.shape == (len(V), rank)
    assert R.shape == (rank, V.shape[1])
    assert (Q.dtype, R.dtype) == (dtype, F64)
    assert Q.T.is_contiguous()
    Q = Q.double()
    assert torch.allclose(Q.T @ Q, torch.eye(rank, dtype=F64), atol=10 * space.eps)
    size = float(V.abs().max()) if V.numel() else 0.0
    assert torch.allclose(Q @ R, V.double(), rtol=0, atol=20 * space.eps * size)


def test_orthonormalize_keeps_a_triangular_factor_at_full_rank():
    _, R = euclidean(50, F64).orthonormalize(euclidean(50, F64).random(range(4), 1, "gaussian"))
    assert torch.equal(R, R.triu())


def test_vector_fills_blocks_by_pattern_and_the_later_pattern_wins():
    space = Space(("layer.weight", "layer.bias", "head"), ((2,), (1,), (0,)), F64)
    assert space.vector({"layer.*": 1.0, "*.bias": 3.0}).tolist() == [1.0, 1.0, 3.0]
    with pytest.raises(
        ValueError, match=r"every block needs a value, got none for 'layer.weight'; add \{'\*': value\}"
    ):
        space.vector({"*.bias": 3.0})


A = Space(("w", "b"), ((2, 2), (2,)))
ONES = {"w": torch.ones(2, 2), "b": torch.ones(2)}
REFUSED = [
    (lambda: Space(("a",), ((1,), (2,))), ValueError, "names and shapes must have the same length, got 1 and 2"),
    (lambda: Space(("a", "a"), ((1,), (2,))), ValueError, "names must be distinct"),
    (
        lambda: Space(("a",), ((1,),), torch.complex64),
        TypeError,
        "dtype must be real, got torch.complex64; .*view_as_real",
    ),
    (lambda: Space(("a",), ((1,),), torch.int64), TypeError, "dtype must be a floating-point type, got torch.int64"),
    (
        lambda: Space.of({"a": torch.ones(1, dtype=torch.complex128)}),
        TypeError,
        "dtype must be real, got torch.complex128",
    ),
    (lambda: Space.of({"a": [1.0]}), TypeError, "block 'a' must be a tensor, got list"),
    (
        lambda: Space.of({"w": torch.ones(1), "v": torch.ones(1), "b": torch.ones(1).double()}),
        TypeError,
        r"all blocks must have one dtype, got 'w' is float32, 'b' is float64; convert with model.to\(dtype\)",
    ),
    (
        lambda: Space.of({"w": torch.ones(1), "b": torch.ones(1, device="meta")}),
        ValueError,
        r"all blocks must be on one device, got \['cpu', 'meta'\]",
    ),
    (lambda: A.flatten({"w": ONES["w"], "c": ONES["b"]}), ValueError, r"missing \['b'\], unknown \['c'\]"),
    (lambda: A.flatten({**ONES, "b": torch.ones(3)}), ValueError, r"block 'b' must have shape \(2,\), got \(3,\)"),
    (
        lambda: A.flatten({**ONES, "b": torch.ones(2).double()}),
        TypeError,
        "block 'b' must be torch.float32, got torch.float64",
    ),
    (lambda: A.flatten({**ONES, "b": torch.ones(2, device="meta")}), ValueError, "block 'b' must be on cpu, got meta"),
    (lambda: A.unflatten(torch.ones(5)), ValueError, r"v must have shape \(6,\), got \(5,\)"),
    (lambda: A.block("c"), KeyError, r"unknown block 'c'; the names are \['w', 'b'\]"),
    (
        lambda: A.restrict(["w", "head.*"]),
        ValueError,
        r"pattern 'head.\*' must match a block, got none of \['w', 'b'\]",
    ),
    (lambda: A.random(0, 1, "normal"), ValueError, "kind must be 'rademacher', 'gaussian' or 'sphere', got 'normal'"),
    (lambda: generator(-1), ValueError, "seed must be a non-negative int, got -1"),
    (lambda: generator(True), ValueError, "seed must be a non-negative int, got True"),
    (lambda: A.random(0, 1.5), ValueError, "seed must be a non-negative int, got 1.5"),
]


@pytest.mark.parametrize(("make", "kind", "sentence"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_is_no_space_or_vector_is_refused_with_a_sentence(make, kind, sentence):
    with pytest.raises(kind, match=sentence):
        make()
