"""What a report is asked to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """What to measure. `top` eigenvalues from each end; `probes` and `steps` of the density; SGD `batch_sizes`.

    `route` is that of Gauss-Newton products, `examples` that of single examples' gradients; None: the default of each.
    `threads` is what the user asked for. The density's defaults cost 128 products an operator: less than what traces
    and norms may take, because its picture says little more with more.
    """

    top: int = 5
    probes: int = 8
    steps: int = 16
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128)
    seed: int = 0
    points: int = 15
    route: Literal["reverse", "forward"] | None = None
    examples: Literal["vmap", "loop"] | None = None
    threads: int | None = None
    restrict: tuple[str, ...] = ()
