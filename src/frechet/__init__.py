"""Derivatives as linear operators."""
