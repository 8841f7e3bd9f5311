"""Which weights can be stored in few bits: predicted and measured increases of the loss, and the best plan."""

from frechet.compress._allocate import BitPlan, allocate_bits, pareto_front
from frechet.compress._quantized import quantized
from frechet.compress._quantizer import uniform
from frechet.compress._sensitivity import Sensitivity, sensitivity

__all__ = ["BitPlan", "Sensitivity", "allocate_bits", "pareto_front", "quantized", "sensitivity", "uniform"]
