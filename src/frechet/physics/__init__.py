"""Differential equations: residuals at points of networks and other functions with parameters."""

from frechet.physics._collocation import Collocation, collocation
from frechet.physics._conflict import Conflict, conflict
from frechet.physics._mesh_points import mesh_points
from frechet.physics._objective import as_objective

__all__ = ["Collocation", "Conflict", "as_objective", "collocation", "conflict", "mesh_points"]
