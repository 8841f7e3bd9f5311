import pytest
import torch
import torch.distributed as dist

from frechet.errors import NonFinite
from frechet.space import Group, digest
from frechet.space._group import SHARED, TILE, sketch


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A group of this one process; what two do is in tests/objective/test_group.py."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield Group.of("world")
    dist.destroy_process_group()


def test_alone_a_group_gives_back_what_it_got(group):
    t = torch.arange(6.0).view(3, 2)
    assert group.sum(t) is not t
    for given in (group.sum(t), group.gather(t), group.first(t), group.objects(t)[0]):
        torch.testing.assert_close(given, t)
    assert group.gather(t[:0]).shape == (0, 2)
    assert group.exchange([3, -4]) == [[3, -4]]
    assert group.together(lambda: 5) == 5


def test_sums_can_be_differentiated_twice(group):
    x = torch.arange(6.0).requires_grad_()
    (g,) = torch.autograd.grad(group.summed((group.shared(x) ** 3).sum()), x, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(g.sum(), x)[0], 6 * x.detach())


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (NonFinite("here"), NonFinite, "^rank 0, batch 2: here"),
        (OSError("full\n  disk"), OSError, "^rank 0, batch 2: full disk"),
        (KeyError("name"), RuntimeError, "^rank 0, batch 2: KeyError: 'name'"),
    ],
)
def test_a_failure_keeps_its_kind_and_says_where(group, error, kind, told):
    with pytest.raises(kind, match=told) as caught:
        group.settle(error, ", batch 2")
    assert caught.value.__notes__ == [SHARED]
    assert caught.value.__cause__ is error


def test_what_is_no_group_is_refused(group):
    with pytest.raises(ValueError, match="group: must be a ProcessGroup or 'world', got 'everyone'"):
        Group.of("everyone")
    with pytest.raises(TypeError, match="group: must be a ProcessGroup or 'world', got int"):
        Group.of(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.int64, torch.uint8, torch.bfloat16])
def test_a_digest_sees_every_entry(dtype):
    t = torch.zeros(3 * TILE + 5).to(dtype)
    seen = {digest(t)}
    for place in (0, 1, TILE - 1, TILE, 2 * TILE + 7, len(t) - 1):
        other = t.clone()
        other[place] = 1
        seen.add(digest(other))
        assert digest(other) == digest(other.clone().view(1, -1).T)
    assert len(seen) == 7


def test_a_digest_sees_the_order_and_the_last_bit():
    z = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    next_to = z.clone()
    next_to[500] = torch.nextafter(z[500], torch.tensor(9.0))
    assert len({digest(z), digest(z.flip(0)), digest(next_to), digest(-z)}) == 4
    signs = [torch.randint(0, 2, (30,), generator=torch.Generator().manual_seed(s)).float() * 2 - 1 for s in range(99)]
    assert len({digest(s) for s in signs}) == 99
    assert digest(torch.zeros(0)) == digest(torch.zeros(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sketch_sees_other_vectors_and_no_rounding(dtype):
    V = torch.randn(2, 40_000, dtype=dtype, generator=torch.Generator().manual_seed(0)).T
    eps = torch.finfo(dtype).eps
    close, far = sketch(V * (1 + eps)), sketch(V.flip(1))
    assert abs(close - sketch(V)) < eps**0.5 * abs(sketch(V))
    assert abs(far - sketch(V)) > eps**0.5 * abs(sketch(V))
