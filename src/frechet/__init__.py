"""Derivatives as linear operators."""

from frechet.objective import *  # noqa: F403
from frechet.operators import *  # noqa: F403
from frechet.space import Space, euclidean

__version__ = "0.1.0"
