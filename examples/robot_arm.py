"""Which joint angles bring a robot's hand where it should be, within the limits of the joints?

    python examples/robot_arm.py [picture.png]

The arm is the KUKA LBR iiwa 14 R820: seven revolute joints, with the Denavit-Hartenberg parameters and the limits of
its data sheet. The hand follows a circle with its tool pointing down; each pose is a least-squares problem of twelve
residuals (position in metres, rotation matrix times 0.3) in seven bounded angles, started from the pose before. Seven
joints for six conditions leave one motion of the elbow free: the result says so in `null_directions`, until a joint
meets its limit. A circle so near that the fourth joint cannot bend enough, and a point out of reach, end at a
residual that is clearly not zero, with the limits that hold the arm.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from frechet import LeastSquaresSolution, least_squares

OFFSETS = (0.36, 0.0, 0.42, 0.0, 0.4, 0.0, 0.126)  # d in metres; all a are zero
TWISTS = (-90, 90, 90, -90, -90, 90, 0)  # alpha in degrees
LIMITS = torch.deg2rad(torch.tensor([170.0, 120.0, 170.0, 120.0, 170.0, 120.0, 175.0], dtype=torch.float64))
START = torch.deg2rad(torch.tensor([0.0, 30.0, 0.0, -90.0, 0.0, 60.0, 0.0], dtype=torch.float64))
DOWN = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
METRES = 0.3  # per unit of a rotation matrix
POSES = 16


@dataclass(frozen=True)
class Found:
    poses: list[LeastSquaresSolution]
    targets: Tensor  # (poses, 3)
    near: list[LeastSquaresSolution]  # a circle so near that limits hold
    near_targets: Tensor
    far: LeastSquaresSolution


def frames(angles: Tensor) -> Tensor:
    """The frames of the joints and of the hand ``(8, 4, 4)``, from the base outwards."""
    frame = torch.eye(4, dtype=torch.float64)
    found = [frame]
    for angle, d, twist in zip(angles, OFFSETS, TWISTS, strict=True):
        c, s = torch.cos(angle), torch.sin(angle)
        ca, sa = round(math.cos(math.radians(twist))), round(math.sin(math.radians(twist)))
        zero, one = torch.zeros_like(c), torch.ones_like(c)
        rows = [[c, -s * ca, s * sa, zero], [s, c * ca, -c * sa, zero], [zero, zero + sa, zero + ca, zero + d]]
        step = torch.stack([torch.stack(row) for row in [*rows, [zero, zero, zero, one]]])
        frame = frame @ step
        found.append(frame)
    return torch.stack(found)


def reach(position: Tensor, start: Tensor) -> LeastSquaresSolution:
    """The angles for a hand at `position` that points down."""

    def residual(angles: Tensor) -> Tensor:
        hand = frames(angles)[-1]
        return torch.cat([hand[:3, 3] - position, METRES * (hand[:3, :3] - DOWN).reshape(-1)])

    return least_squares(residual, start, bounds=(-LIMITS, LIMITS))


def circle(center: tuple[float, float, float], radius: float) -> Tensor:
    turn = torch.linspace(0, 2 * math.pi, POSES, dtype=torch.float64)
    x, y, z = center
    return torch.stack([x + radius * turn.cos(), y + radius * turn.sin(), z + 0 * turn], 1)


def follow(targets: Tensor) -> list[LeastSquaresSolution]:
    found, angles = [], START
    for target in targets:
        solution = reach(target, angles)
        assert isinstance(solution.x, Tensor)
        angles = solution.x
        found.append(solution)
    return found


def run() -> Found:
    targets = circle((0.6, 0.0, 0.25), 0.12)
    near = circle((0.3, 0.0, 0.25), 0.15)
    far = reach(torch.tensor([1.2, 0.0, 0.3], dtype=torch.float64), START)
    return Found(follow(targets), targets, follow(near), near, far)


def angles_of(solutions: list[LeastSquaresSolution]) -> Tensor:
    """The angles ``(poses, 7)``."""
    rows = [s.x for s in solutions if isinstance(s.x, Tensor)]
    return torch.stack(rows)


def picture(found: Found, path: Path) -> None:
    figure = Figure(figsize=(12, 4), layout="constrained")
    arm = figure.add_subplot(1, 3, 1, projection="3d")
    for angles in angles_of(found.poses)[:: POSES // 6]:
        joints = frames(angles)[:, :3, 3].numpy()
        arm.plot(*joints.T, ".-", color="0.4", lw=1.5)
    arm.plot(*found.targets.numpy().T, color="C3", lw=2)
    arm.set(xlabel="x, m", ylabel="y", title="The far circle is followed")
    shares = figure.add_subplot(1, 3, 2)
    for joint, share in enumerate((angles_of(found.near) / LIMITS).T, 1):
        shares.plot(share.numpy(), label=f"{joint}")
    shares.axhline(1, color="k", lw=0.8)
    shares.axhline(-1, color="k", lw=0.8)
    shares.set(xlabel="pose", ylabel="angle / limit", title="The near circle: joint 4 is at its limit")
    shares.legend(ncols=4, fontsize=7)
    errors = figure.add_subplot(1, 3, 3)
    for name, solutions in (("far circle", found.poses), ("near circle", found.near)):
        errors.semilogy([max(s.residual, 1e-17) for s in solutions], ".-", label=name)
    errors.set(xlabel="pose", ylabel="norm of the residual", title="What cannot be reached is told")
    errors.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    found = run()
    for name, solutions in (("far", found.poses), ("near", found.near)):
        held = sum(bool((s.active != 0).any()) for s in solutions)
        met = sum(s.residual < 1e-9 for s in solutions)
        free = sum(s.null_directions is not None and s.null_directions.shape[1] > 0 for s in solutions)
        steps = sum(s.iterations for s in solutions)
        print(f"{name} circle: {met} of {len(solutions)} poses met exactly in {steps} steps;", end="")
        print(f" a limit holds in {held}, the elbow is free in {free}")
    print("\na point out of reach:\n")
    print(found.far.report())
    path = Path(next(iter(sys.argv[1:]), "robot_arm.png"))
    with mpl.rc_context({"font.size": 9}):
        picture(found, path)
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
