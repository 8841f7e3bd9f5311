"""Kinks: derivatives from either side, tests of autograd at them, and smooth versions of kinked functions."""

from frechet.calculus.kinks._mollify import Mollified, mollify
from frechet.calculus.kinks._one_sided import ClarkeCheck, OneSided, clarke_check, one_sided_derivative

__all__ = ["ClarkeCheck", "Mollified", "OneSided", "clarke_check", "mollify", "one_sided_derivative"]
