"""Nonlinear least squares."""
