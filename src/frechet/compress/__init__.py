"""Which weights can go, or be stored in few bits: predicted and measured increases of the loss, and the best plan."""

from frechet.compress._activations import activation_sensitivity, with_quantized_activations
from frechet.compress._allocate import BitPlan, allocate_bits, pareto_front, plot_front
from frechet.compress._format_error import format_error
from frechet.compress._inverses import inverse_curvature
from frechet.compress._masks import as_torch_prune, keep_zeros
from frechet.compress._operations import bit_operations
from frechet.compress._prune import Pruned, prune, sparsity_schedule
from frechet.compress._quantized import quantized
from frechet.compress._quantizer import uniform
from frechet.compress._removal import Removal, compensated, removed_in_order
from frechet.compress._saliency import groups_along, saliency
from frechet.compress._sensitivity import Sensitivity, joined, sensitivity
from frechet.compress._torchao import module_bits, torchao_config, torchao_rounding

__all__ = [
    "BitPlan",
    "Pruned",
    "Removal",
    "Sensitivity",
    "activation_sensitivity",
    "allocate_bits",
    "as_torch_prune",
    "bit_operations",
    "compensated",
    "format_error",
    "groups_along",
    "inverse_curvature",
    "joined",
    "keep_zeros",
    "module_bits",
    "pareto_front",
    "plot_front",
    "prune",
    "quantized",
    "removed_in_order",
    "saliency",
    "sensitivity",
    "sparsity_schedule",
    "torchao_config",
    "torchao_rounding",
    "uniform",
    "with_quantized_activations",
]
