"""What can be learnt from products alone."""

from frechet.linalg.result import Estimate, Solution, Spectrum, Status

__all__ = ["Estimate", "Solution", "Spectrum", "Status"]
