"""K-FAC as a torch optimizer: natural gradients of layers from what an ordinary backward pass shows.

For a layer with inputs a and slopes b of its outputs, A is a running mean of a a' and B of b b'; the gradient G of the
weight and bias becomes

    P = (B kron A + damping I)^-1 G,    update = -lr nu P,    nu = min(1, sqrt(clip / (lr^2 sum <P, G>)))

with the exact damped inverse by the eigenvectors of A and B, which are renewed every `refresh` steps. Hooks record a
and b during `loss.backward()`, so that the training loop stays as it is: accumulation, schedulers and parameter groups
work. Parameters outside of Linear and Conv layers take steps of torch's AdamW.

B comes from the actual targets: it is the empirical Fisher of the loss of a step, which must be a mean over the first
axis of what each layer returns. Where a model folds tokens into that axis, B is larger by their number, and steps are
shorter. In accumulation the losses of the microbatches must add up to the mean over all of them.

**Source.** J. Martens, R. Grosse (2015), arXiv 1503.05671; nu: J. Ba, R. Grosse, J. Martens (2017), Distributed
second-order optimization using Kronecker-factored approximations, ICLR.
**Differs from the source.** (1) The empirical Fisher, so that one backward pass serves. (2) Exact damping instead of a
factored one. (3) The running means begin at the first batch.
**Cost.** Per step, products a a' and b b' of the layers; per renewal the eigenvectors of all A and B, of order in^3 +
out^3 each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from frechet.objective._torch_internals import backward_pass
from frechet.operators.derivatives._kfac_layers import Call, Layer, known_layers

LARGEST = 4096  # inputs or outputs of a layer whose factors are kept
FACTORS = ("A", "B", "values_A", "values_B", "vectors_A", "vectors_B")


@dataclass(eq=False)
class _Seen:
    """What the backward passes since the last step showed of one layer."""

    A: Tensor | None = None
    rows: int = 0
    B: Tensor | None = None
    examples: int = 0
    last: int = -1  # the backward pass that was seen last: a layer may be called several times in one

    def add(self, layer: Layer, given: Tensor, slopes: Tensor) -> None:
        call = Call(layer, given, slopes)
        a = _wide(call.inputs).flatten(0, 1).transpose(0, 1)
        b = _wide(call.slopes(slopes)).flatten(0, 1).transpose(0, 1)
        A, B = a.transpose(1, 2) @ a, b.transpose(1, 2) @ b
        self.A, self.B = (A, B) if self.A is None or self.B is None else (self.A + A, self.B + B)
        self.rows += a.shape[1]
        if (now := backward_pass()) != self.last:
            self.examples, self.last = self.examples + len(slopes), now


class KFAC(torch.optim.Optimizer):
    """K-FAC for the Linear and Conv layers of a model, Adam for its other parameters.

    The first parameter group has the layers, the second one the rest. A scheduler scales both. States load before or
    after the first step, on any device, and the next steps are the same to the last bit.

    Args:
        model: the model. Its layers get hooks; `remove_hooks` takes them off.
        lr: the rate of the layers.
        momentum: of the layers' updates.
        damping: what is added to the eigenvalues of B kron A.
        decay: of the running means of A and B, per step.
        refresh: how many steps the eigenvectors serve.
        clip: the bound of the step's squared length in the curvature; inf for none.
        weight_decay: decoupled, of all parameters: a step of rate lr shrinks them by ``lr * weight_decay``.
        rest_lr: the rate of the other parameters.
        betas: Adam's, for the other parameters.

    Raises:
        ValueError: a number is out of range, or the model has no parameter that requires a gradient.

    Example:
        >>> import torch
        >>> from frechet.train import KFAC
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> optimizer = KFAC(model, lr=0.1)
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
        model: nn.Module,
        *,
        lr: float = 0.05,
        momentum: float = 0.9,
        damping: float = 1e-2,
        decay: float = 0.95,
        refresh: int = 10,
        clip: float = 1e-3,
        weight_decay: float = 0.0,
        rest_lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        _check(lr=lr, damping=damping, weight_decay=weight_decay, rest_lr=rest_lr, clip=clip)
        if not all(0 <= p < 1 for p in (momentum, decay, *betas)):
            raise ValueError(f"KFAC: momentum, decay and betas must lie in [0, 1), got {(momentum, decay, *betas)}")
        if isinstance(refresh, bool) or not isinstance(refresh, int) or refresh < 1:
            raise ValueError(f"KFAC: refresh must be an int >= 1, got {refresh!r}")
        names = {n: p for n, p in model.named_parameters() if p.requires_grad}
        uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        known = [layer for layer in known_layers(model, model.modules(), list(names)) if _served(layer)]
        self._layers = [layer for layer in known if all(uses[id(names[n])] == 1 for n in layer.names)]
        self._own = [[names[n] for n in layer.names] for layer in self._layers]
        covered = {id(p) for own in self._own for p in own}
        rest = [p for p in names.values() if id(p) not in covered]
        common = {"weight_decay": weight_decay}
        groups: list[dict[str, Any]] = [
            {
                "params": [p for own in self._own for p in own], "lr": lr, "momentum": momentum, "damping": damping,
                "decay": decay, "refresh": refresh, "clip": clip, "kind": "layers", **common,
            },
            {"params": rest, "lr": rest_lr, "betas": betas, "eps": 1e-8, "kind": "rest", **common},
        ]  # fmt: skip
        groups = [g for g in groups if g["params"]]
        if not groups:
            raise ValueError("KFAC: the model must have a parameter that requires a gradient, got none")
        super().__init__(groups, {})
        self._seen = [_Seen() for _ in self._layers]
        self._handles = [
            layer.module.register_forward_hook(partial(self._record, i)) for i, layer in enumerate(self._layers)
        ]

    def remove_hooks(self) -> None:
        """Take the hooks off the model, which this optimizer then no longer serves."""
        for handle in self._handles:
            handle.remove()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients and what was recorded with them."""
        super().zero_grad(set_to_none)
        self._seen = [_Seen() for _ in self._layers]

    def _record(self, i: int, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        """Keep the inputs of a call until its slopes come back."""
        if not (module.training and torch.is_grad_enabled() and out.requires_grad):
            return
        inputs = given[0].detach().clone()

        def returned(slopes: Tensor) -> None:
            self._seen[i].add(self._layers[i], inputs, slopes.detach())

        out.register_hook(returned)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step from the gradients and from what the backward passes since the last `zero_grad` showed."""
        if hasattr(self, "found_inf"):
            raise ValueError(
                "KFAC: slopes must not be scaled by a GradScaler, which changes the curvature; train in bfloat16, "
                "which needs no scaler"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["kind"] == "layers":
                self._step_layers(group)
            else:
                self._step_rest(group)
        self._seen = [_Seen() for _ in self._layers]
        return loss

    def _step_layers(self, group: dict[str, Any]) -> None:
        found: list[tuple[int, Tensor]] = []
        inner = 0.0
        for i, own in enumerate(self._own):
            if any(p.grad is None for p in own):
                continue
            self._renew(i, group)
            G = _matrix(self._layers[i], own)
            P = self._preconditioned(i, G, group["damping"])
            inner += float((P * G).sum())
            found.append((i, P))
        lr = group["lr"]
        nu = min(1.0, math.sqrt(group["clip"] / (lr * lr * inner))) if inner > 0 and lr > 0 else 1.0
        if not math.isfinite(inner):
            return  # a gradient that is not finite: nothing is changed
        for i, P in found:
            for p, update in zip(self._own[i], _parameters(self._layers[i], self._own[i], nu * P), strict=True):
                state = self.state[p]
                if group["momentum"]:
                    buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
                    update = buffer.mul_(group["momentum"]).add_(update)
                p.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr)

    def _renew(self, i: int, group: dict[str, Any]) -> None:
        """The running means with what was seen, and their eigenvectors where it is time."""
        seen, state = self._seen[i], self.state[self._own[i][0]]
        if seen.A is not None and seen.B is not None:
            A, B = _of_all_ranks(seen)
            if bool(A.isfinite().all()) and bool(B.isfinite().all()):
                keep = group["decay"] if "A" in state else 0.0
                state["A"] = A if not keep else state["A"].mul_(keep).add_(A, alpha=1 - keep)
                state["B"] = B if not keep else state["B"].mul_(keep).add_(B, alpha=1 - keep)
                state["seen"] = state.get("seen", 0) + 1
        if "A" in state and ("vectors_A" not in state or state["age"] >= group["refresh"]):
            for name in ("A", "B"):
                values, vectors = torch.linalg.eigh(state[name].double())
                state[f"values_{name}"], state[f"vectors_{name}"] = (
                    values.clamp_min(0).to(state[name]),
                    vectors.to(state[name]),
                )
            state["age"] = 0
        if "A" in state:
            state["age"] += 1

    def _preconditioned(self, i: int, G: Tensor, damping: float) -> Tensor:
        """(B kron A + damping I)^-1 G."""
        state = self.state[self._own[i][0]]
        if "vectors_A" not in state:
            return G
        Q_A, Q_B = state["vectors_A"], state["vectors_B"]
        turned = Q_B.transpose(1, 2) @ G.to(Q_A) @ Q_A
        turned = turned / (state["values_B"][:, :, None] * state["values_A"][:, None, :] + damping)
        return Q_B @ turned @ Q_A.transpose(1, 2)

    def _step_rest(self, group: dict[str, Any]) -> None:
        moving = [p for p in group["params"] if p.grad is not None and bool(p.grad.isfinite().all())]
        for p in moving:
            if "exp_avg" not in self.state[p]:
                self.state[p] |= {
                    "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p), "step": torch.tensor(0.0)
                }  # fmt: skip
        states = [self.state[p] for p in moving]
        adamw(
            moving,
            [p.grad for p in moving if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; the factors keep their type beside parameters of any other."""
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        for number, p in zip(numbers, params, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if name in FACTORS:
                    self.state[p][name] = value.clone().to(p.device)


def _wide(t: Tensor) -> Tensor:
    """In float32 at least."""
    return t if t.dtype == torch.float64 else t.float()


def _served(layer: Layer) -> bool:
    """Whether the layer is a linear map with its whole weight here, of a size whose factors are kept."""
    if layer.kind not in ("linear", "convolution") or layer.weight is None or layer.transposed:
        return False
    if layer.module.bias is not None and layer.bias is None:
        return False
    weight: Any = layer.module.weight
    return max(weight.shape[0] // layer.groups, weight[0].numel() + 1) <= LARGEST


def _matrix(layer: Layer, own: Sequence[Tensor]) -> Tensor:
    """The gradient of a layer ``(groups, out, in)``, with that of the bias as the last column."""
    parts = [p.grad for p in own]
    weight = parts[0]
    assert weight is not None  # by the caller
    G = weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1)
    if layer.bias is None:
        return G
    bias = parts[1]
    assert bias is not None
    return torch.cat([G, bias.reshape(layer.groups, -1, 1)], 2)


def _parameters(layer: Layer, own: Sequence[Tensor], P: Tensor) -> list[Tensor]:
    """The parts of such a matrix, like the parameters."""
    if layer.bias is None:
        return [P.reshape(own[0].shape).to(own[0])]
    return [P[..., :-1].reshape(own[0].shape).to(own[0]), P[..., -1].reshape(own[1].shape).to(own[1])]


def _of_all_ranks(seen: _Seen) -> tuple[Tensor, Tensor]:
    """A and B, over the processes that train together; slopes are of the mean of `examples` losses."""
    assert seen.A is not None
    assert seen.B is not None
    A, B = seen.A, seen.B * float(seen.examples) ** 2
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        numbers = torch.tensor([float(seen.rows), float(seen.examples)], device=A.device)
        for t in (A, B, numbers):
            dist.all_reduce(t)
        rows, examples = numbers.tolist()
    else:
        rows, examples = float(seen.rows), float(seen.examples)
    return A / rows, B / examples


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        positive = name in ("damping", "clip")
        if not value >= 0 or (positive and not value > 0) or (math.isinf(value) and name != "clip"):
            raise ValueError(f"KFAC: {name} must be a number {'> 0' if positive else '>= 0'}, got {value}")
