"""Second-order and multi-objective training: pure update rules, and thin optimizers around them."""

from frechet.train._adahessian import AdaHessian, AdaHessianState, adahessian_init, adahessian_step
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
from frechet.train._gauss_newton import GaussNewtonState, GaussNewtonStep, gauss_newton_init, gauss_newton_step
from frechet.train._gauss_newton_optimizer import GaussNewton
from frechet.train._joint import Joint, joint_backward
from frechet.train._kfac import KFAC

__all__ = [
    "KFAC",
    "AdaHessian",
    "AdaHessianState",
    "Aggregate",
    "GaussNewton",
    "GaussNewtonState",
    "GaussNewtonStep",
    "Joint",
    "adahessian_init",
    "adahessian_step",
    "cagrad",
    "cosines",
    "dual_cone",
    "dual_projection",
    "gauss_newton_init",
    "gauss_newton_step",
    "imtl",
    "joint_backward",
    "min_norm",
    "nash",
    "pcgrad",
    "upgrad",
]
