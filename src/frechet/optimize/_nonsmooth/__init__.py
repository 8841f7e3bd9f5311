"""Convex functions of smooth ones: the prox-linear method."""
