"""What vectors are."""

from frechet.space.space import Probe, Space, euclidean, generator

__all__ = ["Probe", "Space", "euclidean", "generator"]
