"""Where did the cameras stand, and where are the points that they saw?

    python examples/bundle_adjustment.py [problem.txt or problem.txt.bz2]

Bundle adjustment moves cameras and points until each point is seen where the photographs show it. The file has the
text format of "Bundle Adjustment in the Large" (Agarwal, Snavely, Seitz and Szeliski 2010): one line with the numbers
of cameras, points and observations; for each observation the camera, the point and two pixels; then nine numbers for
each camera (rotation vector, translation, focal length, two radial distortions) and three for each point. Without a
file the script writes one first: eight cameras around a cloud of points, of which one observation in fifty is wrong.

Each observation reads one camera and one point. `structure` says so, and the points are eliminated from every step.
With Huber's loss a wrong observation counts by its distance, not by its square.
"""

from __future__ import annotations

import bz2
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from frechet import LeastSquaresSolution, least_squares

WRONG = 50  # one observation in so many


@dataclass(frozen=True)
class Problem:
    camera: Tensor  # (observations,)
    point: Tensor  # (observations,)
    pixels: Tensor  # (observations, 2)
    cameras: Tensor  # (cameras, 9)
    points: Tensor  # (points, 3)

    def residual(self, x: dict[str, Tensor]) -> Tensor:
        """Where the points are seen, less where the photographs show them, in pixels."""
        return project(x["cameras"][self.camera], x["points"][self.point]) - self.pixels


@dataclass(frozen=True)
class Found:
    problem: Problem
    solution: LeastSquaresSolution
    before: float  # median distance in pixels
    after: float


def project(cameras: Tensor, points: Tensor) -> Tensor:
    """The pixels ``(..., 2)`` at which cameras ``(..., 9)`` see points ``(..., 3)``."""
    turned = rotated(cameras[..., :3], points) + cameras[..., 3:6]
    plane = -turned[..., :2] / turned[..., 2:]
    square = plane.square().sum(-1, keepdim=True)
    focal, first, second = cameras[..., 6:].split(1, -1)
    return focal * (1 + first * square + second * square**2) * plane


def rotated(vectors: Tensor, points: Tensor) -> Tensor:
    """The points, turned about the rotation vectors by their lengths (Rodrigues)."""
    angle = (vectors.square().sum(-1, keepdim=True) + 1e-30).sqrt()  # smooth at no rotation
    axis = vectors / angle
    along = (axis * points).sum(-1, keepdim=True)
    across = torch.linalg.cross(axis, points)
    return angle.cos() * points + angle.sin() * across + (1 - angle.cos()) * along * axis


def read(path: Path) -> Problem:
    """The problem in a file of the BAL format."""
    text = bz2.decompress(path.read_bytes()).decode() if path.suffix == ".bz2" else path.read_text()
    head, body = text.split(maxsplit=3)[:3], text.split(maxsplit=3)[3]
    cameras, points, count = (int(word) for word in head)
    numbers = torch.tensor([float(word) for word in body.split()], dtype=torch.float64)
    if len(numbers) != 4 * count + 9 * cameras + 3 * points:
        raise ValueError(f"{path}: expected {4 * count + 9 * cameras + 3 * points} numbers, got {len(numbers)}")
    seen, first, second = numbers.split([4 * count, 9 * cameras, 3 * points])
    seen = seen.view(count, 4)
    camera, point = seen[:, :2].long().unbind(1)
    return Problem(camera, point, seen[:, 2:], first.view(cameras, 9), second.view(points, 3))


def write(problem: Problem, path: Path) -> None:
    """Write a file of the BAL format."""
    lines = [f"{len(problem.cameras)} {len(problem.points)} {len(problem.camera)}"]
    rows = zip(problem.camera.tolist(), problem.point.tolist(), problem.pixels.tolist(), strict=True)
    lines += [f"{camera} {point} {u!r} {v!r}" for camera, point, (u, v) in rows]
    lines += [repr(number) for number in [*problem.cameras.reshape(-1).tolist(), *problem.points.reshape(-1).tolist()]]
    path.write_text("\n".join(lines) + "\n")


def cloud(cameras: int = 8, points: int = 150, seed: int = 0) -> Problem:
    """Cameras on a circle around a cloud of points, started a little off, with some wrong observations."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    true = torch.zeros(cameras, 9, dtype=torch.float64)
    true[:, 1] = torch.linspace(-2.5, 2.5, cameras, dtype=torch.float64)
    true[:, 5], true[:, 6], true[:, 7] = -6.0, 800.0, -0.05
    places = normal(points, 3).clamp(-2, 2)
    point, camera = (torch.rand(points, cameras, generator=draw) < 0.7).nonzero(as_tuple=True)
    pixels = project(true[camera], places[point]) + 0.5 * normal(len(camera), 2)
    pixels[::WRONG] += 200 * normal(len(pixels[::WRONG]), 2)
    off = torch.tensor([0.02] * 3 + [0.05] * 3 + [10.0, 0.01, 0.01], dtype=torch.float64)
    return Problem(camera, point, pixels, true + off * normal(cameras, 9), places + 0.05 * normal(points, 3))


def distance(problem: Problem, x: dict[str, Tensor]) -> float:
    """The median distance between where a point is and where it was seen, in pixels."""
    return float(problem.residual(x).square().sum(1).sqrt().median())


def adjust(problem: Problem) -> Found:
    start = {"cameras": problem.cameras, "points": problem.points}
    structure = {"cameras": problem.camera, "points": problem.point}
    solution = least_squares(problem.residual, start, structure=structure, loss="huber", ftol=1e-8)
    assert isinstance(solution.x, dict)
    return Found(problem, solution, distance(problem, start), distance(problem, solution.x))


def run(path: Path | None = None) -> Found:
    if path is not None:
        return adjust(read(path))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.txt"
        write(cloud(), path)
        return adjust(read(path))


def main() -> None:
    found = run(Path(sys.argv[1])) if len(sys.argv) > 1 else run()
    problem, s = found.problem, found.solution
    print(f"{len(problem.cameras)} cameras, {len(problem.points)} points, {len(problem.camera)} observations")
    print(f"median distance {found.before:.3g} -> {found.after:.3g} pixels, cost {s.start_cost:.6g} -> {s.cost:.6g}")
    print(f"{s.status}: {s.message}")
    print(f"{s.iterations} iterations, {s.residual_evaluations} residuals, {s.jacobian_evaluations} Jacobians")
    print(s.method)
    wrong = problem.residual(s.x).square().sum(1).sqrt() > 20 * math.sqrt(2)  # type: ignore[arg-type]
    print(f"{int(wrong.sum())} observations are further than 28 pixels from their points")


if __name__ == "__main__":
    main()
