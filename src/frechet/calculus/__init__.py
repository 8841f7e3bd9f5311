"""Derivatives beyond backprop."""

from frechet.calculus import taylor

__all__ = ["taylor"]
