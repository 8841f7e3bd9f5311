"""Products recorded once and played back, and the memory that they may hold."""

from frechet.recording._linearize import Linearized, linearize
from frechet.recording._memory import free_memory, peak_above, ran_out, start_peak

__all__ = [
    "Linearized",
    "free_memory",
    "linearize",
    "peak_above",
    "ran_out",
    "start_peak",
]
