"""Steps that run again for a derivative must do the same again.

Random numbers of torch are drawn again from where they were drawn first. What else differs between two runs of one
input, such as numbers drawn by NumPy or a module that counts its calls, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.objective._torch_internals import in_dispatch_mode

ALIKE = 1e-6  # relative difference of sums: kernels of a device may add in another order, draws differ by far more


@dataclass(eq=False)
class Repetition:
    """What the first run of some steps was like."""

    draws: list[Tensor] = field(default_factory=list)  # states of the generators: the host's, then devices'
    sums: dict[tuple[float, ...], tuple[float, float]] = field(
        default_factory=dict
    )  # of inputs -> of outputs, and size

    @contextmanager
    def same_draws(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """The generators of the first run inside; those outside go on as if nothing had run."""
        devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
        if not self.draws:
            self.draws = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]
            yield
            return
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.draws[0])
            for d, state in zip(devices, self.draws[1:], strict=True):
                torch.cuda.set_rng_state(state, d)
            yield

    def compare(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], where: str) -> None:
        """Raise where the same inputs have given other outputs before."""
        if in_dispatch_mode():  # where no value may be read
            return
        key = tuple(float(t.detach().double().sum()) for t in inputs)
        total = sum(float(t.detach().double().sum()) for t in outputs)
        size = sum(float(t.detach().double().abs().sum()) for t in outputs)
        before, scale = self.sums.setdefault(key, (total, size))
        if not abs(total - before) <= ALIKE * max(scale, size):
            raise ValueError(
                f"march: step must do the same when it runs again, got another result in {where}; draw random numbers "
                "with torch, or before the march as controls, and keep no counts"
            )
