"""Differential equations, optimal control, inverse problems."""

from frechet.physics._collocation import Collocation, collocation
from frechet.physics._conflict import Conflict, conflict
from frechet.physics._control import Control
from frechet.physics._galerkin import LatentVelocity, galerkin_velocity
from frechet.physics._grid_collocation import GridSolution, grid_collocation
from frechet.physics._implicit_step import implicit_step
from frechet.physics._march import Trajectory, march
from frechet.physics._mesh import Mesh, monge_ampere_mesh
from frechet.physics._mesh_points import mesh_points
from frechet.physics._metric_descent import Descent, DescentState, metric_descent
from frechet.physics._objective import as_objective
from frechet.physics._operator_collocation import ProcessSolution, operator_collocation
from frechet.physics._posterior import Posterior, low_rank_posterior

__all__ = [
    "Collocation",
    "Conflict",
    "Control",
    "Descent",
    "DescentState",
    "GridSolution",
    "LatentVelocity",
    "Mesh",
    "Posterior",
    "ProcessSolution",
    "Trajectory",
    "as_objective",
    "collocation",
    "conflict",
    "galerkin_velocity",
    "grid_collocation",
    "implicit_step",
    "low_rank_posterior",
    "march",
    "mesh_points",
    "metric_descent",
    "monge_ampere_mesh",
    "operator_collocation",
]
