"""Laplace approximations of the posterior of a model's parameters: see `posterior.py`."""
