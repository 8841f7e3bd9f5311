"""What is differentiated: a model, a criterion and data, as a sum over examples plus penalties."""

from frechet.objective._check import Check
from frechet.objective._data import Batch, Subsample, causal_lm, default_split, seq2seq, subsample
from frechet.objective._objective import Objective
from frechet.objective._parts import Part, Penalty, l2
from frechet.objective._snapshot import Snapshot

__all__ = [
    "Batch",
    "Check",
    "Objective",
    "Part",
    "Penalty",
    "Snapshot",
    "Subsample",
    "causal_lm",
    "default_split",
    "l2",
    "seq2seq",
    "subsample",
]
