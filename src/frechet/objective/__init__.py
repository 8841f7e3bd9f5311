"""What is differentiated."""

from frechet.objective.check import Check
from frechet.objective.criterion import (
    Criterion,
    binary_cross_entropy,
    gaussian,
    huber,
    poisson,
    squared_error,
)
from frechet.objective.cross_entropy import cross_entropy
from frechet.objective.custom import custom
from frechet.objective.data import Batch, Subsample, causal_lm, default_split, seq2seq, subsample
from frechet.objective.objective import Objective
from frechet.objective.parts import Part, Penalty, l2
from frechet.objective.snapshot import Snapshot

__all__ = [
    "Batch",
    "Check",
    "Criterion",
    "Objective",
    "Part",
    "Penalty",
    "Snapshot",
    "Subsample",
    "binary_cross_entropy",
    "causal_lm",
    "cross_entropy",
    "custom",
    "default_split",
    "gaussian",
    "huber",
    "l2",
    "poisson",
    "seq2seq",
    "squared_error",
    "subsample",
]
