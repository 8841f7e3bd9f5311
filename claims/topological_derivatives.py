"""I. Mehta, M. Chandraker, R. Ramamoorthi (2023), A theory of topological derivatives for inverse rendering,
arXiv 2308.09865.

Claim: topological derivatives relate the introduction of vanishing holes and phases to changes of the image, and allow
changes of topology that silhouette gradients miss. Here: a ring from a full disc, seen through a blur.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from claim import Claim


def example(name: str):
    """The script of this name in examples/."""
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure() -> Claim:
    """The derivative against shrinking discs, and the descent with and without nucleation."""
    found = example("topological_derivative").run()
    quotients = ", ".join(f"{change:+.3f}" for _, change, _ in found.checks)
    good = found.holes == (1, 0) and found.with_holes[-1] < 1e-3 * found.without[-1]
    return Claim(
        paper="Mehta, Chandraker, Ramamoorthi 2023, arXiv 2308.09865",
        claim="topological derivatives predict the effect of vanishing holes, and find topologies that borders do not",
        theirs="holes and phases in two and three dimensions from images",
        ours=f"holes of radius 0.2, 0.1, 0.05 change J by {quotients} per area, derivative {found.checks[0][2]:+.3f}; "
        f"J ends at {found.with_holes[-1]:.0e} with nucleation, {found.without[-1]:.0e} without",
        verdict="holds" if good else "does not hold here",
        why="the hole's middle is far from any border, where a gradient of the shape is blind; images, no rendering",
        name="examples/topological_derivative.py",
    )
