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
from frechet.train._hessian_alignment import hessian_alignment
from frechet.train._jacobian_moments import JacobianMoments, jacobian_moments
from frechet.train._jacobian_penalties import jacobian_asymmetry, jacobian_frobenius, jacobian_nuclear
from frechet.train._joint import Joint, joint_backward
from frechet.train._kfac import KFAC
from frechet.train._maxout import Maxout, initialize_maxout, maxout_variance

__all__ = [
    "KFAC",
    "Aggregate",
    "JacobianMoments",
    "Joint",
    "Maxout",
    "cagrad",
    "cosines",
    "dual_cone",
    "dual_projection",
    "hessian_alignment",
    "imtl",
    "initialize_maxout",
    "jacobian_asymmetry",
    "jacobian_frobenius",
    "jacobian_moments",
    "jacobian_nuclear",
    "joint_backward",
    "maxout_variance",
    "min_norm",
    "nash",
    "pcgrad",
    "upgrad",
]
