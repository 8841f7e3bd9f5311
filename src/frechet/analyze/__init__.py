"""Questions about a trained model, and about a training run."""

from frechet.analyze._annealing_law import AnnealingLaw, fit_annealing_law
from frechet.analyze._barrier import Barrier, barrier
from frechet.analyze._batch_curvature import BatchCurvature, BatchTop, batch_curvature
from frechet.analyze._calibration import Calibration, calibration
from frechet.analyze._example_frobenius import ExampleFrobenius, example_frobenius
from frechet.analyze._example_quadratics import ExampleQuadratics, example_quadratics
from frechet.analyze._example_slopes import ExampleSlopes, example_slopes
from frechet.analyze._examples import ExampleCurvatures, ExampleGradients, example_curvatures, example_gradients
from frechet.analyze._gram import Gram, gradient_gram, ntk_matrix
from frechet.analyze._influence import Influence, LeaveOneOut, influence, leave_one_out
from frechet.analyze._intrinsic_dimension import IntrinsicDimension, intrinsic_dimension, random_subspace
from frechet.analyze._laplace.evidence import EvidenceGradient, evidence_gradient, tune_evidence, with_prior
from frechet.analyze._laplace.fit import laplace
from frechet.analyze._laplace.posterior import Posterior
from frechet.analyze._laplace.prediction import LaplacePrediction, draw, predict
from frechet.analyze._layers import LayerTops, LayerTraces, layer_tops, layer_traces
from frechet.analyze._lyapunov import Lyapunov, lyapunov
from frechet.analyze._noise_scale import CurvatureNoiseScale, NoiseScale, curvature_noise_scale, noise_scale
from frechet.analyze._ntk_discriminator import NtkDiscriminator, NtkFlow, ntk_discriminator, ntk_flow
from frechet.analyze._ntk_prediction import NtkDrift, NtkPrediction, ntk_drift, ntk_prediction
from frechet.analyze._outliers import Outliers, outliers
from frechet.analyze._plan import Job, Plan, plan
from frechet.analyze._power_law import PowerLaw, fit_power_law
from frechet.analyze._roughness import Roughness, roughness
from frechet.analyze._run.batch_sharpness import BatchSharpness, batch_sharpness
from frechet.analyze._run.critical_rate import CriticalRate, critical_rate
from frechet.analyze._run.monitor import Monitor, probe_batches
from frechet.analyze._run.reading import History, Quantity, Reading, read_history
from frechet.analyze._run.step_metric import StepMetric, optimizer_metric
from frechet.analyze._run.step_rule import StepRule, step_rule
from frechet.analyze._scaling_rules import (
    Hyperparameters,
    adamw_timescale,
    scale_for_batch,
    scale_for_width,
    weight_decay_for,
    width_exponent,
)
from frechet.analyze._self_distillation import SelfDistillation, self_distillation
from frechet.analyze._self_influence import SelfInfluence, self_influence
from frechet.analyze._slices import Plane, Slices, loss_plane, loss_slices
from frechet.analyze._smoothness import Smoothness, fit_smoothness
from frechet.analyze._spectral_check import MatrixNorms, SpectralCheck, spectral_check
from frechet.analyze._stability import (
    Interpolation,
    Stability,
    exact_mean_square_limit,
    interpolation,
    stability,
    stable_learning_rate,
)
from frechet.analyze._step_influence import StepRun, run_steps, step_influence
from frechet.analyze._training_regions import TrainingRegions, training_regions
from frechet.analyze._trajectory import Trajectory, Update, adam_update, sgd_update, training_jacobian, trajectory
from frechet.analyze._trajectory_influence import trajectory_influence
from frechet.analyze._trajectory_invariance import TrajectoryInvariance, trajectory_invariance

__all__ = [
    "AnnealingLaw",
    "Barrier",
    "BatchCurvature",
    "BatchSharpness",
    "BatchTop",
    "Calibration",
    "CriticalRate",
    "CurvatureNoiseScale",
    "EvidenceGradient",
    "ExampleCurvatures",
    "ExampleFrobenius",
    "ExampleGradients",
    "ExampleQuadratics",
    "ExampleSlopes",
    "Gram",
    "History",
    "Hyperparameters",
    "Influence",
    "Interpolation",
    "IntrinsicDimension",
    "Job",
    "LaplacePrediction",
    "LayerTops",
    "LayerTraces",
    "LeaveOneOut",
    "Lyapunov",
    "MatrixNorms",
    "Monitor",
    "NoiseScale",
    "NtkDiscriminator",
    "NtkDrift",
    "NtkFlow",
    "NtkPrediction",
    "Outliers",
    "Plan",
    "Plane",
    "Posterior",
    "PowerLaw",
    "Quantity",
    "Reading",
    "Roughness",
    "SelfDistillation",
    "SelfInfluence",
    "Slices",
    "Smoothness",
    "SpectralCheck",
    "Stability",
    "StepMetric",
    "StepRule",
    "StepRun",
    "TrainingRegions",
    "Trajectory",
    "TrajectoryInvariance",
    "Update",
    "adam_update",
    "adamw_timescale",
    "barrier",
    "batch_curvature",
    "batch_sharpness",
    "calibration",
    "critical_rate",
    "curvature_noise_scale",
    "draw",
    "evidence_gradient",
    "exact_mean_square_limit",
    "example_curvatures",
    "example_frobenius",
    "example_gradients",
    "example_quadratics",
    "example_slopes",
    "fit_annealing_law",
    "fit_power_law",
    "fit_smoothness",
    "gradient_gram",
    "influence",
    "interpolation",
    "intrinsic_dimension",
    "laplace",
    "layer_tops",
    "layer_traces",
    "leave_one_out",
    "loss_plane",
    "loss_slices",
    "lyapunov",
    "noise_scale",
    "ntk_discriminator",
    "ntk_drift",
    "ntk_flow",
    "ntk_matrix",
    "ntk_prediction",
    "optimizer_metric",
    "outliers",
    "plan",
    "predict",
    "probe_batches",
    "random_subspace",
    "read_history",
    "roughness",
    "run_steps",
    "scale_for_batch",
    "scale_for_width",
    "self_distillation",
    "self_influence",
    "sgd_update",
    "spectral_check",
    "stability",
    "stable_learning_rate",
    "step_influence",
    "step_rule",
    "training_jacobian",
    "training_regions",
    "trajectory",
    "trajectory_influence",
    "trajectory_invariance",
    "tune_evidence",
    "weight_decay_for",
    "width_exponent",
    "with_prior",
]
