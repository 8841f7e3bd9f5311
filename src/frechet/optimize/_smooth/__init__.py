"""Minimization of smooth functions, with and without bounds."""
