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
from frechet.train._cheap_proxy import ProxyState, ProxyStep, hessian_similarity, proxy_step
from frechet.train._gauss_newton import GaussNewtonState, GaussNewtonStep, gauss_newton_init, gauss_newton_step
from frechet.train._gauss_newton_optimizer import GaussNewton
from frechet.train._gradient_regularized import (
    GradientRegularizedState,
    GradientRegularizedStep,
    gradient_regularized_step,
)
from frechet.train._hessian_aided import HessianAided, HessianAidedState, hessian_aided_init, hessian_aided_step
from frechet.train._hessian_alignment import hessian_alignment
from frechet.train._jacobian_moments import JacobianMoments, jacobian_moments
from frechet.train._jacobian_penalties import jacobian_asymmetry, jacobian_frobenius, jacobian_nuclear
from frechet.train._joint import Joint, joint_backward
from frechet.train._kfac import KFAC
from frechet.train._levenberg_marquardt import levenberg_marquardt
from frechet.train._local_entropy import EntropySGD, LocalEntropyState, local_entropy_init, local_entropy_step
from frechet.train._maxout import Maxout, initialize_maxout, maxout_variance
from frechet.train._mfac import MFAC
from frechet.train._mfac_step import MfacState, mfac_init, mfac_step
from frechet.train._minimax import MinimaxCheck, MinimaxState, is_local_minimax, minimax_step
from frechet.train._prox_linear import ProxLinearStep, prox_linear_step
from frechet.train._refined_schedule import refined_schedule
from frechet.train._residual_descent import ResidualState, ResidualStep, spring_init, spring_step
from frechet.train._sharpness import SAM, ascent
from frechet.train._target_surrogate import SurrogateState, SurrogateStep, surrogate, surrogate_step

__all__ = [
    "KFAC",
    "MFAC",
    "SAM",
    "AdaHessian",
    "AdaHessianState",
    "Aggregate",
    "EntropySGD",
    "GaussNewton",
    "GaussNewtonState",
    "GaussNewtonStep",
    "GradientRegularizedState",
    "GradientRegularizedStep",
    "HessianAided",
    "HessianAidedState",
    "JacobianMoments",
    "Joint",
    "LocalEntropyState",
    "Maxout",
    "MfacState",
    "MinimaxCheck",
    "MinimaxState",
    "ProxLinearStep",
    "ProxyState",
    "ProxyStep",
    "ResidualState",
    "ResidualStep",
    "SurrogateState",
    "SurrogateStep",
    "adahessian_init",
    "adahessian_step",
    "ascent",
    "cagrad",
    "cosines",
    "dual_cone",
    "dual_projection",
    "gauss_newton_init",
    "gauss_newton_step",
    "gradient_regularized_step",
    "hessian_aided_init",
    "hessian_aided_step",
    "hessian_alignment",
    "hessian_similarity",
    "imtl",
    "initialize_maxout",
    "is_local_minimax",
    "jacobian_asymmetry",
    "jacobian_frobenius",
    "jacobian_moments",
    "jacobian_nuclear",
    "joint_backward",
    "levenberg_marquardt",
    "local_entropy_init",
    "local_entropy_step",
    "maxout_variance",
    "mfac_init",
    "mfac_step",
    "min_norm",
    "minimax_step",
    "nash",
    "pcgrad",
    "prox_linear_step",
    "proxy_step",
    "refined_schedule",
    "spring_init",
    "spring_step",
    "surrogate",
    "surrogate_step",
    "upgrad",
]
