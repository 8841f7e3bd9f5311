"""Fréchet means of points in metric spaces."""
