"""What two ranks compute for tests/space/test_sharded.py with sharded parameters, beside the same on one process."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

from frechet.analyze import example_gradients, loss_slices
from frechet.linalg import cg, diagonal, eigsh, jacobi, lanczos, nystrom, trace
from frechet.objective import Objective, l2
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators._constructors import from_diagonal, from_factors, from_matrix
from frechet.operators.derivatives import gauss_newton, hessian
from group_worker import OPERATORS, SHARDS, TARGETS, TOKENS, message, off
from objective_models import Attention, seeded
from sharded_algorithms import algorithms


class Odd(nn.Module):
    """Rows that do not divide by two, one row alone, convolutions, a tied weight, a checkpoint, a frozen layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 2)
        self.norm = nn.BatchNorm1d(3)
        self.narrow = nn.Linear(12, 1)
        self.wide, self.tied = nn.Linear(1, 3), nn.Linear(3, 3)
        self.again = nn.Linear(3, 3)
        self.again.weight = self.tied.weight
        self.frozen = nn.Linear(3, 2).requires_grad_(False)

    def forward(self, x):
        h = torch.tanh(self.norm(self.conv(x)).flatten(1))
        h = torch.tanh(self.wide(torch.tanh(self.narrow(h))))
        h = checkpoint(self.tied, h, use_reentrant=False) if self.checkpointed else self.tied(h)
        h = torch.tanh(h)
        return self.frozen(torch.tanh(self.again(h)))

    checkpointed = False


def odd_data(dtype):
    g = torch.Generator().manual_seed(3)
    return torch.randn(13, 1, 5, dtype=dtype, generator=g), torch.randn(13, 2, dtype=dtype, generator=g)


def sharded(model, *parts):
    mesh = init_device_mesh("cpu", (2,))
    for part in parts:
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def attention(rank, dtype):
    """The objective of two ranks with a sharded model, the same of one process, and the sharded model."""
    plain = seeded(Attention).to(dtype)
    model = copy.deepcopy(plain)
    model = sharded(model, *list(model.children())[:1])
    single = Objective(plain, cross_entropy(), [(TOKENS, TARGETS)], penalty=l2(0.1))
    return Objective(model, cross_entropy(), SHARDS[rank], penalty=l2(0.1), group="world"), single, model


def odd(rank, dtype):
    plain = seeded(Odd).to(dtype)
    model = copy.deepcopy(plain)
    model = sharded(model, model.conv, [model.narrow, model.wide])
    X, Y = odd_data(dtype)
    mine = [(X[:9], Y[:9])] if rank == 0 else [(X[9:11], Y[9:11]), (X[11:], Y[11:])]
    single = Objective(plain, squared_error(), [(X, Y)], penalty=l2(0.1))
    return Objective(model, squared_error(), mine, penalty=l2(0.1), group="world"), single, model


MODELS = {"attention": attention, "odd": odd}


def products(rank, make, dtype):
    ours, single, _ = make(rank, dtype)
    space = ours.space
    errors = {
        "value": off(ours.value(), single.value()),
        "point": off(space.whole(ours.point), single.point),
        "gradient": off(space.whole(ours.gradient()), single.gradient()),
    }
    x, V = single.point + 0.1 * single.space.random(7, 0), single.space.random(range(3), 0)
    errors["value elsewhere"] = off(ours.value(space.own(x)), single.value(x))
    for name, operator in OPERATORS.items():
        if name == "restricted hessian":
            operator = lambda o: hessian(o, restrict="*.weight")  # noqa: E731
        A, B = operator(ours), operator(single)
        V = B.domain.random(range(3), 0)
        product = A @ A.domain.own(V)
        assert A.shape == B.shape
        assert product.shape == (A.domain.length, 3)
        errors[name] = off(A.domain.whole(product), B @ V)
    A, B = hessian(ours, space.own(x)), hessian(single, x)
    tree = A @ space.unflatten(space.random(3, 0))
    errors["dict, elsewhere"] = off(space.whole(space.flatten(tree)), B @ single.space.random(3, 0))
    return errors


def checkpointed(rank):
    """A checkpoint runs its part again in the backward pass."""
    ours, single, model = odd(rank, torch.float64)
    model.checkpointed = single.model.checkpointed = True
    v = single.space.random(0, 0)
    return off(ours.space.whole(hessian(ours) @ ours.space.own(v)), hessian(single) @ v)


def pieces(rank):
    """Who holds what, and how draws and pieces fit together."""
    ours, single, _ = odd(rank, torch.float64)
    space, whole = ours.space, single.space
    drawn = {
        kind: bool((space.whole(space.random(range(2), 1, kind)) == whole.random(range(2), 1, kind)).all())
        for kind in ("rademacher", "gaussian", "sphere")
    }
    v = whole.random(0, 0, "gaussian")
    part, values = space.restrict("conv.*"), {"*": 1.0, "conv.*": 2.0}
    return {
        "length": (space.length, space.dim, whole.dim),
        "held": space.held,
        "drawn": drawn,
        "round trip": bool((space.whole(space.own(v)) == v).all()),
        "vector": bool((space.vector(values) == space.own(whole.vector(values))).all()),
        "restricted": bool((part.own(v[: whole.restrict("conv.*").dim]) == space.own(v)[space.indices(part)]).all()),
        "repr": repr(space),
        "equal": space == odd(rank, torch.float64)[0].space != whole,
        "unsharded": space.unsharded == whole,
    }


def nothing_here(rank):
    """One row: rank 1 holds no entry at all."""
    plain = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(plain.weight, 0.5)
    model = sharded(copy.deepcopy(plain))
    X = torch.eye(4, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    data = [(X, torch.zeros(4, 1, dtype=torch.float64))]
    ours = Objective(model, squared_error(), data if rank == 1 else [], group="world")  # who has data has no rows
    H = hessian(ours)
    values = eigsh(H, 2, seed=0).values
    Q, R = ours.space.orthonormalize(ours.space.random(range(2), 0))
    x = cg(H, ours.gradient()).x
    return ours.space.length, values, float(trace(H, method="exact")), off(ours.space.gram(Q, Q), torch.eye(2)), x, R


def trains(rank):
    """A step of the live model is that of the plain one, whatever was computed in between, at every stage."""
    X, Y = odd_data(torch.float64)
    X, Y = X[:12], Y[:12]
    gaps = []
    ours, single, model = odd(rank, torch.float64)
    plain = single.model
    register_fsdp_forward_method(model.wide, "forward")
    mine = slice(6 * rank, 6 * rank + 6)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain)]
    H = hessian(ours)
    v = single.space.random(0, 0)
    before = H @ ours.space.own(v)
    hooks = [list(h.items()) for m in model.modules() for h in (m._forward_pre_hooks, m._forward_hooks)]
    for _ in range(2):
        with torch.no_grad():
            model(X[mine])  # leaves the root's parameters gathered
        gaps.append(off(ours.space.whole(hessian(ours) @ ours.space.own(v)), hessian(single) @ v))
        for m, part, optimizer in zip((model, plain), (mine, slice(None)), optimizers, strict=True):
            optimizer.zero_grad()
            loss = (m(X[part]) - Y[part]).square().mean()
            if m is model:
                ours.gradient()  # between a forward and its backward pass
            loss.backward()
            optimizer.step()
        gaps.append(off(ours.space.whole(ours.point), single.point))
    after = [list(h.items()) for m in model.modules() for h in (m._forward_pre_hooks, m._forward_hooks)]
    still = bool((H @ ours.space.own(v) == before).all())
    return {
        "gaps": gaps,
        "hooks": hooks == after,
        "some": sum(map(len, hooks)),
        "frozen": still,
        "class": type(model).__name__,
    }


def checks(rank):
    ours, single, _ = odd(rank, torch.float64)
    a, b = ours.check(), single.check()
    cut = off(ours.space.whole(ours.in_pieces(4).gradient()), single.gradient())
    return (max(off(a.value, b.value), cut), a.examples, a.terms == b.terms, a.unreached, a.kinks == b.kinks, a.ranks)


def failures(rank):
    ours, _, model = odd(rank, torch.float64)
    X, Y = odd_data(torch.float64)
    mesh = init_device_mesh("cpu", (2,))
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fully_shard(mixed[0], mesh=mesh)
    by_column, copied = nn.Linear(2, 2), nn.Linear(2, 2)
    for m, place in ((by_column, Shard(1)), (copied, Replicate())):
        m.weight = nn.Parameter(distribute_tensor(m.weight.data, mesh, [place]))
        m.bias = nn.Parameter(distribute_tensor(m.bias.data, mesh, [Shard(0)]))
    two = sharded(nn.Linear(2, 2))
    alone = [dist.new_group([r]) for r in range(2)][rank]
    H, space = hessian(ours), ours.space
    n = space.dim
    bad = X[:9] * float("nan") if rank == 1 else X[:9]
    v = space.random(0, 0)

    def made(m, group="world"):
        return Objective(m, squared_error(), [(X, Y)], group=group)

    noisy = copy.copy(space.random(0, 0))
    if rank == 0:
        noisy[0] = float("nan")
    return {
        name: message(work)
        for name, work in {
            "no group": lambda: made(model, None),
            "other group": lambda: made(two, alone),
            "mixed": lambda: made(mixed),
            "columns": lambda: made(by_column),
            "copies": lambda: made(copied),
            "data": lambda: Objective(model, squared_error(), [(bad, Y[:9])], group="world").gradient(),
            "model": lambda: hessian(Objective(model, squared_error(), [(X, Y[: 13 - rank])], group="world")) @ v,
            "vector": lambda: H @ noisy,
            "whole vector": lambda: H @ torch.zeros(n, dtype=torch.float64),
            "whole x": lambda: ours.value(torch.zeros(n, dtype=torch.float64)),
            "differentiable": lambda: ours.value(ours.point.requires_grad_()),
            "matrix": lambda: from_matrix(torch.eye(n, dtype=torch.float64), domain=space),
            "diagonal": lambda: from_diagonal(v, domain=space),
            "factors": lambda: from_factors(v[:, None], domain=space),
            "nystrom": lambda: nystrom(gauss_newton(ours), rank=2, damping=1.0, seed=0),
            "jacobi": lambda: jacobi(diagonal(gauss_newton(ours), seed=0, products=4), damping=1.0, domain=space),
            "examples": lambda: example_gradients(ours),
            "slices": lambda: loss_slices(ours, space.random(range(1), 0), points=3, radius=0.1),
            "start": lambda: lanczos(H, torch.zeros(n, dtype=torch.float64), steps=2),
            "eigsh start": lambda: eigsh(H, 1, seed=0, x0=noisy[:, None]),
            "afterwards": lambda: H @ v,
        }.items()
    }


def main(rank, _folder):
    found = {
        f"{n} {str(d)[6:]}": products(rank, m, d) for n, m in MODELS.items() for d in (torch.float64, torch.float32)
    }
    return {
        **found,
        "checkpointed": checkpointed(rank),
        "algorithms": algorithms(rank, odd),
        "pieces": pieces(rank),
        "nothing here": nothing_here(rank),
        "trains": trains(rank),
        "checks": checks(rank),
        "failures": failures(rank),
    }
