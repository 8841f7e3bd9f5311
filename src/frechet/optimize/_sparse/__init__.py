"""Least squares whose Jacobian is sparse: its structure, its blocks, and the elimination of their diagonal part."""
