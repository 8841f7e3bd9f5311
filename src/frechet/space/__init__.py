"""Vectors: named blocks of one flat tensor, and every reduction and random draw on them."""

from frechet.space._group import Group, digest
from frechet.space._shard import Shard
from frechet.space._space import Probe, Space, aligned, euclidean, generator

__all__ = [
    "Group",
    "Probe",
    "Shard",
    "Space",
    "aligned",
    "digest",
    "euclidean",
    "generator",
]
