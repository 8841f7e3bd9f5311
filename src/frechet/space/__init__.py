"""What vectors are."""

from frechet.space.group import Group, digest
from frechet.space.shard import Shard
from frechet.space.space import Probe, Space, euclidean, generator

__all__ = ["Group", "Probe", "Shard", "Space", "digest", "euclidean", "generator"]
