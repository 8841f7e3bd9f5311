"""Minimization under equalities, inequalities and bounds, from products alone."""
