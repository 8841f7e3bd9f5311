"""Vectors: named blocks of one flat tensor, and every reduction and random draw on them."""

from frechet.space._draws import generator
from frechet.space._group import Group, digest
from frechet.space._shard import Shard
from frechet.space._space import Probe, Space, aligned, euclidean
from frechet.space._variables import Point, Variables, like, named

__all__ = [
    "Group",
    "Point",
    "Probe",
    "Shard",
    "Space",
    "Variables",
    "aligned",
    "digest",
    "euclidean",
    "generator",
    "like",
    "named",
]
