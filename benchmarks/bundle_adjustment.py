"""Bundle adjustment with a declared structure, beside SciPy's trf with the same residual: cost, evaluations, seconds.

    python benchmarks/bundle_adjustment.py [--cameras 20] [--points 1000] [--seen 8] [--rounds 5] [--large]

Cameras of nine parameters stand around a cloud of points, each seen by about `--seen` of them; observations have noise
of half a pixel, and the start is perturbed. All get the same torch residual on one thread. SciPy's `trf` takes its
`jac_sparsity`, or an exact sparse Jacobian by `vmap` and `jacrev` over single observations: that needs the residual of
one observation, more than we ask for. Both have ``x_scale="jac"``, without which trf needs thousands of evaluations,
and their default tolerances. Ours run with SciPy's ``ftol=1e-8``, and by the plain call to the last digits. Times are
in units of trf with `jac_sparsity`, ratios within interleaved rounds. ``--large`` runs 100 cameras with 10 000 points
once, without a peer. Writes results/bundle_adjustment.json.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import timing
import torch
from scipy import sparse
from scipy.optimize import least_squares as scipy_least_squares
from torch import Tensor

from frechet import least_squares

PERTURBED = (0.02, 0.02, 0.02, 0.05, 0.05, 0.05, 5.0, 0.005, 0.005)  # of the parameters of a camera


@dataclass(frozen=True)
class Problem:
    camera: Tensor  # (observations,)
    point: Tensor  # (observations,)
    pixels: Tensor  # (observations, 2)
    cameras: Tensor  # (cameras, 9): rotation vector, translation, focal length, two radial distortions
    points: Tensor  # (points, 3)

    def residual(self, x: dict[str, Tensor]) -> Tensor:
        return project(x["cameras"][self.camera], x["points"][self.point]) - self.pixels


@dataclass(frozen=True)
class Outcome:
    cost: float
    evaluations: int
    jacobians: int
    stopped: str


def project(cameras: Tensor, points: Tensor) -> Tensor:
    """The pixels at which cameras see points, as in "Bundle Adjustment in the Large"."""
    vectors = cameras[..., :3]
    angle = (vectors.square().sum(-1, keepdim=True) + 1e-30).sqrt()  # smooth at no rotation
    axis = vectors / angle
    along = (axis * points).sum(-1, keepdim=True)
    across = torch.linalg.cross(axis, points)
    turned = angle.cos() * points + angle.sin() * across + (1 - angle.cos()) * along * axis + cameras[..., 3:6]
    plane = -turned[..., :2] / turned[..., 2:]
    square = plane.square().sum(-1, keepdim=True)
    focal, first, second = cameras[..., 6:].split(1, -1)
    return focal * (1 + first * square + second * square**2) * plane


def scene(cameras: int, points: int, seen: float, seed: int) -> Problem:
    """Cameras on a circle around a cloud; each point is seen by two cameras at least."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    true = 0.1 * normal(cameras, 9)
    true[:, 1] += 2 * math.pi * torch.arange(cameras) / cameras - math.pi
    true[:, 5] -= 5.0
    true[:, 6:] = torch.tensor([500.0, -0.05, 0.01], dtype=torch.float64)
    places = 0.7 * normal(points, 3).clamp(-2, 2)
    chance = torch.rand(points, cameras, generator=draw)
    chance.scatter_(1, chance.topk(2, largest=False).indices, 0.0)
    point, camera = (chance < seen / cameras).nonzero(as_tuple=True)
    pixels = project(true[camera], places[point]) + 0.5 * normal(len(camera), 2)
    off = torch.tensor(PERTURBED, dtype=torch.float64) * normal(cameras, 9)
    return Problem(camera, point, pixels, true + off, places + 0.05 * normal(points, 3))


def ours(problem: Problem, ftol: float = 0.0) -> Callable[[], Outcome]:
    start = {"cameras": problem.cameras, "points": problem.points}
    structure = {"cameras": problem.camera, "points": problem.point}

    def run() -> Outcome:
        s = least_squares(problem.residual, start, structure=structure, ftol=ftol)
        return Outcome(s.cost, s.residual_evaluations, s.jacobian_evaluations, f"{s.status}: {s.message}")

    return run


def trf(problem: Problem, exact: bool) -> Callable[[], Outcome]:
    camera, point = problem.camera.numpy(), problem.point.numpy()
    first = problem.cameras.numel()
    columns = np.concatenate(
        [9 * camera[:, None] + np.arange(9), first + 3 * point[:, None] + np.arange(3)], axis=1
    )  # of each observation
    shape = (2 * len(camera), first + problem.points.numel())
    indices = np.repeat(columns, 2, axis=0).ravel()
    indptr = 12 * np.arange(shape[0] + 1)
    pattern = sparse.csr_matrix((np.ones(len(indices)), indices, indptr), shape=shape)
    start = torch.cat([problem.cameras.reshape(-1), problem.points.reshape(-1)]).numpy()
    single = torch.func.vmap(torch.func.jacrev(project, (0, 1)))

    def split(v: np.ndarray) -> dict[str, Tensor]:
        x = torch.from_numpy(v)
        return {"cameras": x[:first].view(-1, 9), "points": x[first:].view(-1, 3)}

    def run() -> Outcome:
        counts = [0, 0]

        def residual(v: np.ndarray) -> np.ndarray:
            counts[0] += 1
            return problem.residual(split(v)).reshape(-1).numpy()

        def jacobian(v: np.ndarray) -> sparse.csr_matrix:
            counts[1] += 1
            x = split(v)
            blocks = torch.cat(single(x["cameras"][problem.camera], x["points"][problem.point]), 2)
            return sparse.csr_matrix((blocks.numpy().ravel(), indices, indptr), shape=shape)

        way = partial(scipy_least_squares, residual, start, method="trf", x_scale="jac", tr_solver="lsmr")
        s = way(jac=jacobian) if exact else way(jac="2-point", jac_sparsity=pattern)  # pyright: ignore[reportArgumentType]
        return Outcome(float(s.cost), counts[0], s.njev, s.message)

    return run


def timed(outcomes: dict[str, list[Outcome]], name: str, run: Callable[[], Outcome]) -> Callable[[], object]:
    return lambda: outcomes[name].append(run())


def compared(problem: Problem, rounds: int, seed: int) -> list[dict[str, object]]:
    runs = {
        "scipy trf, jac_sparsity": trf(problem, exact=False),
        "scipy trf, exact sparse Jacobian": trf(problem, exact=True),
        "least_squares, ftol 1e-8": ours(problem, ftol=1e-8),
        "least_squares, plain call": ours(problem),
    }
    outcomes: dict[str, list[Outcome]] = {name: [] for name in runs}
    functions = {name: timed(outcomes, name, run) for name, run in runs.items()}
    times = timing.interleave(functions, rounds=rounds, seed=seed)
    ratios = timing.ratios(times, next(iter(runs)))
    rows = []
    print(f"{'':<34}{'cost':>20}{'residuals':>11}{'Jacobians':>11}{'seconds':>10}{'ratio':>8}")
    for name in runs:
        last, (ratio, low, high) = outcomes[name][-1], timing.quartiles(ratios[name])
        seconds = float(np.median(times[name]))
        print(f"{name:<34}{last.cost:>20.10f}{last.evaluations:>11}{last.jacobians:>11}{seconds:>10.3f}{ratio:>8.2f}")
        rows.append({"name": name, **vars(last), "seconds": seconds, "ratio": ratio, "quartiles": [low, high]})
    return rows


def large(seed: int) -> dict[str, object]:
    problem = scene(100, 10_000, 10, seed)
    start = time.perf_counter()
    found = ours(problem, ftol=1e-8)()
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"100 cameras, 10000 points, {len(problem.camera)} observations: cost {found.cost:.6f} in {found.evaluations}"
    )
    print(f"residuals and {found.jacobians} Jacobians, {seconds:.1f} s, at most {memory:.2f} GiB; {found.stopped}")
    return {"observations": len(problem.camera), **vars(found), "seconds": seconds, "memory_gib": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=20)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seen", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    timing.restart(1)
    torch.set_num_threads(1)
    problem = scene(arguments.cameras, arguments.points, arguments.seen, arguments.seed)
    print(f"{arguments.cameras} cameras, {arguments.points} points, {len(problem.camera)} observations, one thread")
    rows = compared(problem, arguments.rounds, arguments.seed)
    results = {"observations": len(problem.camera), "runs": rows}
    if arguments.large:
        results["large"] = large(arguments.seed)
    timing.write("bundle_adjustment", timing.record(vars(arguments), **results))


if __name__ == "__main__":
    main()
