"""What vectors are."""

from frechet.space.group import Group, digest
from frechet.space.shard import Shard
from frechet.space.space import Probe, Space, aligned, euclidean, generator

__all__ = ["Group", "Probe", "Shard", "Space", "aligned", "digest", "euclidean", "generator"]
