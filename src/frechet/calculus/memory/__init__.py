"""Derivatives whose graphs keep only what they need."""

from frechet.calculus.memory._lean import memory_lean, saved_bytes

__all__ = ["memory_lean", "saved_bytes"]
