"""What two ranks compute for tests/objective/test_group.py, beside the same on one process."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frechet.analyze import curvature_noise_scale, example_curvatures, example_gradients, loss_slices, noise_scale
from frechet.linalg import cg, eigsh, spectral_density, trace
from frechet.objective import Objective, l2, subsample
from frechet.objective.criteria import cross_entropy, custom, squared_error
from frechet.operators import check_operator
from frechet.operators._constructors import identity
from frechet.operators.derivatives import (
    empirical_fisher,
    fisher,
    gauss_newton,
    hessian,
    hessian_product,
    jacobian,
    ntk,
)
from frechet.recording import linearize
from frechet.space import Group, digest
from objective_models import Attention, labels, seeded

TOKENS, TARGETS = labels(5, 11, 6), labels(5, 11, 6, seed=1)
TARGETS[7:, 1:] = -100  # the second shard is nearly all padding
TARGETS[2, 4:] = -100
SHARDS = [[(TOKENS[a:b], TARGETS[a:b]) for a, b in cuts] for cuts in (((0, 3), (3, 7)), ((7, 11),))]

OPERATORS = {
    "hessian": hessian,
    "forward hessian": lambda o: hessian(o, route="forward"),
    "restricted hessian": lambda o: hessian(o, restrict="head.*"),
    "gauss_newton": gauss_newton,
    "reverse gauss_newton": lambda o: gauss_newton(o, route="reverse"),
    "fisher": fisher,
    "linearized hessian": lambda o: linearize(hessian(o)),
    "linearized hessian, nothing kept": lambda o: linearize(hessian(o), 0),
    "linearized gauss_newton": lambda o: linearize(gauss_newton(o)),
    "empirical_fisher per example": lambda o: empirical_fisher(o, per="example"),
    "empirical_fisher per term": lambda o: empirical_fisher(o, per="term"),
}


def off(a, b):
    a, b = (torch.as_tensor(t).detach().double() for t in (a, b))
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def objectives(rank, dtype, shards=SHARDS):
    """The objective of two ranks, and the same of one process."""
    model = seeded(Attention).to(dtype)
    single = Objective(model, cross_entropy(), [(TOKENS, TARGETS)], penalty=l2(0.1))
    return Objective(model, cross_entropy(), shards[rank], penalty=l2(0.1), group="world"), single


def products(rank, dtype, shards=SHARDS):
    """Relative errors, and digests that must be the same on both ranks."""
    ours, single = objectives(rank, dtype, shards)
    errors = {"value": off(ours.value(), single.value()), "gradient": off(ours.gradient(), single.gradient())}
    bits = {"value": digest(ours.value()), "gradient": digest(ours.gradient())}
    for name, operator in OPERATORS.items():
        A, B = operator(ours), operator(single)
        V = A.domain.random(range(3), 0)
        product = A @ V
        errors[name], bits[name] = off(product, B @ V), digest(product.T)
    if shards[rank] is SHARDS[rank]:  # .on takes each rank's batch
        first = Objective(ours.model, cross_entropy(), [SHARDS[0][0], SHARDS[1][0]], penalty=l2(0.1))
        both, V = 0.5 * ours + ours.on(SHARDS[rank][0]) * 2.0, ours.space.random(range(2), 5)
        errors["sum"] = off(hessian(both) @ V, hessian(0.5 * single + 2.0 * first) @ V)
    return {"errors": errors, "bits": bits}


class Lazy:
    """Batches that are made as they are read."""

    def __iter__(self):
        return iter(zip(TOKENS.split(3), TARGETS.split(3), strict=True))


def dealt():
    """Objectives of one process whose passes are shared out."""
    model, whole = seeded(Attention), list(Lazy())
    part = subsample(whole, 7, seed=0)
    found, counts = {}, {}
    for name, data in {"list": whole, "lazy": Lazy(), "subsample": part}.items():
        for by in ("batch", "example"):
            single = Objective(model, cross_entropy(), data, penalty=l2(0.1))
            ours = (0.5 * single).sharded("world", by=by)
            v = ours.space.random(0, 0)
            found[f"{name} by {by}"] = off(hessian(ours) @ v, 0.5 * (hessian(single) @ v))
            counts[f"{name} by {by}"] = (len(list(ours.batches())), ours.population)
    return {"errors": found, "counts": counts}


def differentiable(rank, shards):
    ours, single = objectives(rank, torch.float64, shards)
    x, v = single.point, single.space.random(0, 1)
    found = []
    for objective in (ours, single):
        leaf = x.clone().requires_grad_()
        value = objective.value(leaf)
        (g,) = torch.autograd.grad(value, leaf, create_graph=True)
        (h,) = torch.autograd.grad((g * g).sum(), leaf, create_graph=True)
        (third,) = torch.autograd.grad((h * v).sum(), leaf)
        found.append([value, g, h, third, hessian_product(objective.value, x, v)])
    return {"errors": [off(a, b) for a, b in zip(*found, strict=True)], "bits": [digest(t) for t in found[0]]}


def algorithms(rank):
    ours, single = objectives(rank, torch.float64)
    found = []
    for objective in (ours, single):
        H, G = hessian(objective), gauss_newton(objective)
        spectrum = eigsh(H, 3, seed=0, which="both")
        solution = cg(G + 0.1 * identity(G.domain), objective.gradient(), rtol=1e-10)
        traced = trace(H, products=12, seed=0)
        density = spectral_density(H, seed=0, probes=3, steps=12)
        moment = density.trace_of(lambda t: t * t).value
        found.append([spectrum.values, spectrum.vectors.abs(), solution.x, traced.value, moment])
    return {
        "errors": [off(a, b) for a, b in zip(*found, strict=True)],
        "bits": [digest(torch.as_tensor(t)) for t in found[0]],
        "law": check_operator(gauss_newton(ours), seed=0) is not None,
    }


def wrapped(rank):
    model = seeded(Attention)
    ddp = DistributedDataParallel(model)
    ours = Objective(ddp, cross_entropy(), SHARDS[rank], group=dist.group.WORLD)
    single = Objective(model, cross_entropy(), [(TOKENS, TARGETS)])
    v = ours.space.random(0, 0)
    checked, alone = ours.check(), single.check()
    return {
        "error": off(hessian(ours) @ v, hessian(single) @ v),
        "repr": repr(ours),
        "check": (checked.value, checked.batches, checked.examples, checked.terms, checked.ranks, checked.wrapper),
        "alone": (alone.value, alone.batches, alone.examples, alone.terms, alone.ranks, alone.wrapper),
    }


def analyses(rank):
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    g = torch.Generator().manual_seed(3)
    X, Y = (torch.randn(23, k, dtype=torch.float64, generator=g) for k in (3, 2))
    mine = [(X[:9], Y[:9]), (X[9:14], Y[9:14])] if rank == 0 else [(X[14:], Y[14:])]
    ours = Objective(model, squared_error(), mine, penalty=l2(0.1), group="world")
    single = Objective(model, squared_error(), [(X, Y)], penalty=l2(0.1))
    V = ours.space.random(range(2), 0)
    found = []
    for objective in (ours, single):
        gradients, scale = example_gradients(objective), noise_scale(objective)
        cut = loss_slices(objective, V, points=5, radius=0.1)
        found.append(
            [
                *(gradients.squared_norms, gradients.inner, gradients.losses, gradients.gradient),
                *(scale.value, scale.lower, cut.losses),
                *(example_curvatures(objective, V).values, example_curvatures(objective, V, V).values),
            ]
        )
    drawn = [curvature_noise_scale(o, seed=0, probes=100) for o in (ours, single)]
    gap = off(drawn[0].weighted_variance.value, drawn[1].weighted_variance.value)
    half = single.on((X[:12], Y[:12]))
    share = subsample([(X[:12], Y[:12])] if rank == 0 else [(X[12:], Y[12:])], 6 if rank == 0 else 5, seed=0)
    part = Objective(model, squared_error(), share, group="world")
    return {
        "errors": [off(a, b) for a, b in zip(*found, strict=True)],
        "drawn": (gap, drawn[0].examples, off(drawn[0].gradient_curvature, drawn[1].gradient_curvature)),
        "population": (part.population, part.on((X, Y)).population, half.population),
    }


def monte_carlo(rank):
    """The same shard on both ranks: with one stream the group's matrix would be each rank's own."""
    model, shard = seeded(Attention), SHARDS[0]
    ours = Objective(model, cross_entropy(), shard, group="world")
    alone = Objective(model, cross_entropy(), shard)
    v = ours.space.random(0, 0)
    exact = fisher(alone) @ v
    draws = torch.stack([fisher(ours, seed=s) @ v for s in range(40)])
    z = (draws.mean(0) - exact) / (draws.std(0) / 40**0.5).clamp_min(1e-12)
    repeated = fisher(ours, seed=0) @ v
    # two ranks that drew alike would be as far from the mean as one
    own = torch.stack([fisher(alone, seed=s) @ v for s in range(40)])
    ratio = float(draws.var(0).sum() / own.var(0).sum())
    return {"z": float(z.square().mean()), "repeats": bool((repeated == draws[0]).all()), "variance": ratio}


def message(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def failures(rank):
    model = seeded(lambda: nn.Linear(3, 2))
    X, Y = torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    good = [(X, Y), (X, Y)]

    def made(data, criterion=None, m=model):
        return Objective(m, criterion or squared_error(), data, group="world")

    def terms(outputs, targets):
        if rank == 1 and float(targets.sum()) > 0:
            raise KeyError("lost")
        return (outputs - targets).square()

    objective = made(good)
    nan = [(X, Y), (X * (float("nan") if rank else 1.0), Y)]
    elsewhere = seeded(lambda: nn.Linear(3, 2), seed=rank)
    noisy = seeded(lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    noisy[1].running_mean.fill_(rank)
    coupled = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double().train(rank == 1)
    training = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).double().train(rank == 1)
    dist.barrier()
    pieces = {
        "nan": lambda: hessian(made(nan)) @ objective.space.random(0, 0),
        "nan in the point": lambda: objective.gradient(objective.point * float("nan")),
        "model": lambda: made([(X, Y), (X, Y + rank)], custom(terms)).value(),
        "shape": lambda: made([(X[:, : 3 - rank], Y)]).gradient(),
        "check": lambda: made([(X, Y), (X, Y + rank)], custom(terms)).check(),
        "empty": lambda: made([]).value(),
        "point": lambda: hessian(made(good, m=elsewhere)),
        "vectors": lambda: hessian(objective) @ objective.space.random(rank, 0),
        "buffers": lambda: hessian(made(good, m=noisy)),
        "training": lambda: made(good, m=training).value(),
        "shapes": lambda: made(good, m=seeded(lambda: nn.Linear(3, 2 + rank))),
        "criterion": lambda: made(good, cross_entropy() if rank else squared_error()),
        "no model": lambda: made(good, m=3 if rank else model),
        "one-shot data": lambda: made(iter(good) if rank else good).value(),
        "x": lambda: objective.value(torch.zeros(5 + rank, dtype=torch.float64)),
        "jacobian": lambda: jacobian(objective),
        "ntk": lambda: ntk(objective),
        "sum": lambda: objective + Objective(model, squared_error(), good),
        "dealt twice": lambda: objective.sharded("world"),
        "dealt oddly": lambda: Objective(model, squared_error(), good).sharded("world", by="token"),
        "dealt once only": lambda: Objective(model, squared_error(), iter(good)).sharded("world"),
        "pieces": lambda: made(good, m=coupled).in_pieces(2),
        "share": lambda: made(subsample([(X, Y)] * 5, 4 + 10 * rank, seed=0)),
    }
    told = {name: message(work) for name, work in pieces.items()}
    told["afterwards"] = float(objective.value()) - float(Objective(model, squared_error(), good).value())
    return told


def main(rank, _folder):
    empty = [SHARDS[0] + SHARDS[1], []]
    results = {
        "float64": products(rank, torch.float64),
        "float32": products(rank, torch.float32),
        "empty": products(rank, torch.float64, empty),
        "plain": off(mean_of_means(rank), objectives(rank, torch.float64)[1].gradient()),
        "differentiable": differentiable(rank, SHARDS),
        "differentiable empty": differentiable(rank, empty),
        "algorithms": algorithms(rank),
        "wrapped": wrapped(rank),
        "dealt": dealt(),
        "analyses": analyses(rank),
        "monte carlo": monte_carlo(rank),
        "failures": failures(rank),
        "group": (Group.of("world") == Group.of(dist.group.WORLD), repr(Group.of("world"))),
    }
    objective, _ = objectives(rank, torch.float64)
    dist.barrier()
    if rank == 0:  # the other rank ends
        results["lost"] = message(objective.value)
    return results


def mean_of_means(rank):
    """What an average of the ranks' own gradients would be."""
    gradient = Objective(seeded(Attention), cross_entropy(), SHARDS[rank], penalty=l2(0.1)).gradient()
    dist.all_reduce(gradient)
    return gradient / 2
