"""Differential equations: residuals at points of networks and other functions with parameters."""

from frechet.physics._collocation import Collocation, collocation
from frechet.physics._conflict import Conflict, conflict

__all__ = ["Collocation", "Conflict", "collocation", "conflict"]
