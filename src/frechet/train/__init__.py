"""Second-order and multi-objective training: pure update rules, and thin optimizers around them."""

from frechet.train._aggregate import (
    Aggregate,
    cagrad,
    cosines,
    dual_cone,
    dual_projection,
    imtl,
    min_norm,
    nash,
    pcgrad,
    upgrad,
)
from frechet.train._joint import Joint, joint_backward
from frechet.train._kfac import KFAC
from frechet.train._mfac import MFAC

__all__ = [
    "KFAC",
    "MFAC",
    "Aggregate",
    "Joint",
    "cagrad",
    "cosines",
    "dual_cone",
    "dual_projection",
    "imtl",
    "joint_backward",
    "min_norm",
    "nash",
    "pcgrad",
    "upgrad",
]
