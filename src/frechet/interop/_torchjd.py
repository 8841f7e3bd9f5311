"""The exact projection onto the dual cone for TorchJD's aggregators: `UPGrad(projector=dual_cone_projector())`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from frechet.train import dual_cone


def dual_cone_projector() -> Any:
    """Return a projector for `torchjd.aggregation.UPGrad` and `DualProj`, exact at any ratio of gradient norms.

    The projector that comes with TorchJD adds 1e-4 to the diagonal of the normalized Gram matrix, so that the update
    conflicts with gradients much shorter than the others.

    Returns:
        A `torchjd.linalg.DualConeProjector`.

    Raises:
        ImportError: TorchJD 0.18 or newer is not installed.
    """
    try:
        from torchjd.linalg import DualConeProjector
    except ImportError as e:
        raise ImportError("dual_cone_projector: TorchJD 0.18 or newer must be installed; pip install torchjd") from e

    class Exact(DualConeProjector):
        def __call__(self, U: Tensor, G: Any) -> Tensor:
            return dual_cone(G, U)

    return Exact()
