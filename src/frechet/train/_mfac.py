"""M-FAC as a torch optimizer: natural gradients from the last gradients themselves, for any model.

    F = damping I + (1/m) sum_i g_i g_i'     over the last m gradients of the loss, those of the present step among them
    update = -lr nu F^-1 g,                  nu = min(1, sqrt(clip / (lr^2 g'F^-1 g)))

Nothing is asked of layers: one vector of all parameters goes through `InverseFisher`. As g is one of the g_i, F^-1 g is
a sum of them, so that no digits are lost where the damping is small.

**Source.** E. Frantar, E. Kurtic, D. Alistarh (2021), M-FAC, arXiv 2107.03356, section 3.2; nu as in `KFAC`.
**Differs from the source.** (1) A Cholesky factor of the Gram matrix in float64. (2) While the window fills, the mean
is over the gradients that are there. (3) Weight decay is decoupled, and momentum is a running sum, as in `KFAC`. (4)
nu, where `clip` is finite.
**Cost.** Per step 4 m n operations for n parameters and a window of m, and m^3 / 3; m n numbers in float32 at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from frechet.operators import InverseFisher
from frechet.space import euclidean

ROUNDING = 1e-15  # of the sum of squared gradients: the rounding of a Cholesky factor is some eps of it


class MFAC(torch.optim.Optimizer):
    """M-FAC: steps along the inverse of the empirical Fisher matrix of the last gradients.

    The matrix is that of all parameters together; rates, momenta and weight decays may differ between groups. A
    parameter without a gradient in a step counts as one whose gradient is 0, and is not changed. Under
    DistributedDataParallel every process holds the same window. States load before or after the first step, on any
    device, and the next steps are the same to the last bit.

    Args:
        params: parameters, or groups of them.
        lr: the rate.
        momentum: of the updates.
        damping: what is added to the matrix, the same in all groups, in the unit of a squared gradient; at least 1e-15
            of the sum of the window's squared gradients.
        window: how many gradients are kept, the same in all groups: as many times the memory of the model.
        clip: the bound of the step's squared length in the matrix; inf for none.
        weight_decay: decoupled: a step of rate lr shrinks parameters by ``lr * weight_decay``.

    Raises:
        ValueError: a number is out of range, or parameters are complex, sharded, or on several devices.

    Example:
        >>> import torch
        >>> from frechet.train import MFAC
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> optimizer = MFAC(model.parameters(), lr=0.01, damping=0.1, window=32)
        >>> x = torch.randn(64, 4)
        >>> y = torch.sin(x).sum(1, keepdim=True)
        >>> losses = []
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x), y)
        ...     loss.backward()
        ...     optimizer.step()
        ...     losses.append(loss.item())
        >>> losses[-1] < 0.1 * losses[0]
        True
    """

    _step_supports_amp_scaling = True  # a GradScaler then tells that it is there, and is refused

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        momentum: float = 0.9,
        damping: float = 1e-3,
        window: int = 128,
        clip: float = math.inf,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "damping": damping, "window": window, "clip": clip,
            "weight_decay": weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, before the first step."""
        if any("gradients" in s for s in getattr(self, "state", {}).values()):
            raise ValueError("MFAC.add_param_group: groups must be added before the first step, got one after it")
        super().add_param_group(param_group)
        for group in self.param_groups:
            _check(group)
        for p in self._parameters():
            if p.is_complex() or not p.is_floating_point() or hasattr(p, "placements"):
                raise ValueError(f"MFAC: parameters must be real, dense and whole, got {type(p).__name__} of {p.dtype}")

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step from the gradients, which enter the window."""
        if hasattr(self, "found_inf"):
            raise ValueError(
                "MFAC: gradients must not be scaled by a GradScaler, which changes their products; train in bfloat16, "
                "which needs no scaler"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name in ("damping", "window", "clip"):
            if len(found := {group[name] for group in self.param_groups}) > 1:
                raise ValueError(f"MFAC: {name} must be the same in all groups, got {sorted(found)}")
        params = self._parameters()
        g = _joined(params)
        if any(p.grad is not None for p in params) and bool(g.isfinite().all()):
            self._move(params, self._preconditioned(g))
        return loss

    def _preconditioned(self, g: Tensor) -> Tensor:
        """nu F^-1 g, after g has entered the window."""
        first, group = self._parameters()[0], self.param_groups[0]
        state, window = self.state[first], group["window"]
        if "gradients" not in state:
            state["gradients"] = g.new_zeros(window, len(g))
            state["gram"] = torch.zeros(1, window, window, dtype=torch.float64, device=g.device)
            state["seen"] = 0
        G, gram = state["gradients"], state["gram"]
        if len(G) != window:
            raise ValueError(f"MFAC: window must be that of the steps before, {len(G)}, got {window}")
        at, count = state["seen"] % window, min(state["seen"] + 1, window)
        state["seen"] += 1
        G[at] = g
        space = euclidean(len(g), g.dtype, g.device)
        row = InverseFisher(G[:count], 1.0, space, len(g), gram[:, :0, :0]).products(g)[0, :, 0]
        gram[0, at, :count] = row
        gram[0, :count, at] = row
        # a Cholesky factor in float64 needs a shift above its rounding, which matters where the loss explodes
        damping = max(group["damping"], ROUNDING * float(gram[0].diagonal().sum()))
        u = InverseFisher(G[:count], damping, space, len(g), gram[:, :count, :count]).of_gradient(at)
        lr, inner = max(group["lr"] for group in self.param_groups), float(space.inner(u, g))
        nu = min(1.0, math.sqrt(group["clip"] / (lr * lr * inner))) if inner > 0 and lr > 0 else 1.0
        return nu * u

    def _move(self, params: list[Tensor], u: Tensor) -> None:
        updates = iter(u.split([p.numel() for p in params]))
        for group in self.param_groups:
            for p in group["params"]:
                update = next(updates).view_as(p)
                if p.grad is None:
                    continue
                if group["momentum"]:
                    buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(update))
                    update = buffer.mul_(group["momentum"]).add_(update)
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.to(p), alpha=-group["lr"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; what is kept in float32 or float64 stays so beside parameters of any other type."""
        super().load_state_dict(state_dict)
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        for number, p in zip(numbers, self._parameters(), strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][name] = value.clone().to(p.device)


def _joined(params: list[Tensor]) -> Tensor:
    """All gradients as one vector, in float32 at least."""
    if len({p.device for p in params}) > 1:
        raise ValueError(f"MFAC: parameters must be on one device, got {sorted({str(p.device) for p in params})}")
    wide = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
    parts = []
    for p in params:
        if p.grad is not None and p.grad.layout is not torch.strided:
            raise ValueError("MFAC: gradients must be dense, got sparse ones; make embeddings with sparse=False")
        parts.append((torch.zeros_like(p) if p.grad is None else p.grad).to(wide).reshape(-1))
    return torch.cat(parts)


def _check(group: dict[str, Any]) -> None:
    for name in ("lr", "damping", "clip", "weight_decay"):
        value, positive = group[name], name in ("damping", "clip")
        if not value >= 0 or (positive and not value > 0) or (math.isinf(value) and name != "clip"):
            raise ValueError(f"MFAC: {name} must be a number {'> 0' if positive else '>= 0'}, got {value}")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"MFAC: momentum must lie in [0, 1), got {group['momentum']}")
    window = group["window"]
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"MFAC: window must be an int >= 1, got {window!r}")
