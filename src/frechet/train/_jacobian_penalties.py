"""Penalties on the Jacobian of a model in its inputs, by random projections, differentiable in the parameters.

With J_i the Jacobian of example i's C outputs in its inputs, and v_1, ..., v_k random orthonormal directions in R^C,

    jacobian_frobenius    mean_i |J_i|_F^2                       C / k sum_j |J_i'v_j|^2
    jacobian_nuclear      1/2 mean_i (|Jh_i|_F^2 + |Jg_i|_F^2)   of the composition g(h(x)), an upper bound of |J_i|_*
    jacobian_asymmetry    mean_i |J_i - J_i'|_F^2                n / k sum_j |J_i v_j - J_i'v_j|^2

The estimates are unbiased. With M_i = J_i J_i', or (J_i - J_i')'(J_i - J_i'), of m independent examples

    variance  =  1/m^2 sum_i  1/k (C - k)/(C - 1) 2C/(C + 2) (tr M_i^2 - (tr M_i)^2 / C)

which is 0 for k = C, and for M_i = c I. Over all factorizations f = g h the minimum of the nuclear penalty is the mean
nuclear norm of the Jacobian of f.

**Source.** J. Hoffman, D. Roberts, S. Yaida (2019), Robust learning with Jacobian regularization, arXiv 1908.02729; C.
Scarvelis, J. Solomon (2024), Nuclear norm regularization for deep learning, arXiv 2405.14544; A. Laborieux, F. Zenke
(2024), Improving equilibrium propagation without weight symmetry through Jacobian homeostasis, arXiv 2309.02214.
**Differs from the source.** (1) Directions of an example are orthonormal, which has less variance. (2) The factor 1/2
of the first source is the user's. (3) The second source replaces both norms by differences at a step of 1e-3; here they
are derivatives. (4) Asymmetry by one product with J - J' for each direction.
**Cost.** For each direction a backward pass to the inputs, twice with its own backward; the forward pass is the loss's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

import torch
from torch import Tensor, nn

from frechet.errors import NotDifferentiable
from frechet.objective._kernels import (
    recurrence_without_cudnn,
    refuse_once_differentiable,
    refused_reentrant_checkpoints,
    unfused_attention,
)
from frechet.objective._model import couplings, training_flags
from frechet.operators.derivatives._products import dual_numbers, grads, second_order
from frechet.space import euclidean

Route = Literal["forward", "reverse"]


def jacobian_frobenius(
    model: nn.Module, inputs: Tensor, *, seed: int, projections: int | None = 1, coupled: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the model's outputs, and the mean squared Frobenius norm of the Jacobian of an example's outputs.

    Add a multiple of it to the loss of the outputs. Both come from one forward pass, so that dropout leaves out the
    same units in both. In `torch.no_grad` the numbers are the same, without a graph.

    Args:
        model: takes a tensor with the examples on axis 0, and returns one.
        inputs: the inputs ``(m, ...)``, floating.
        seed: of the directions. Give another one at each step, such as the step's number.
        projections: how many directions are drawn for each example. None: all C outputs, the exact value.
        coupled: whether modules may couple the examples of a batch, as batch normalization does in training mode. The
            estimate is then that of the Jacobian of all outputs in all inputs, divided by m. Default: they are refused.

    Returns:
        The outputs, and the estimate, a scalar tensor.

    Raises:
        ValueError: a module couples the examples, the outputs have other examples than the inputs, or `projections`
            exceeds the outputs of an example.
        NotDifferentiable: the outputs do not depend on the inputs.

    Example:
        >>> import torch
        >>> from frechet.train import jacobian_frobenius
        >>> model = torch.nn.Linear(3, 2)
        >>> y, penalty = jacobian_frobenius(model, torch.randn(5, 3), seed=0, projections=None)
        >>> bool(torch.isclose(penalty, model.weight.square().sum()))
        True
    """
    refuse_coupled_examples("jacobian_frobenius", (model,), coupled)
    with torch.enable_grad(), _twice():
        x = _opened("jacobian_frobenius", inputs)
        y = _tensor("jacobian_frobenius", model(x))
        penalty = _squares("jacobian_frobenius", y, x, seed, projections)
    return _as_asked(y, penalty)


def jacobian_nuclear(
    inner: nn.Module,
    outer: nn.Module,
    inputs: Tensor,
    *,
    seed: int,
    projections: int | None = 1,
    coupled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the outputs of outer(inner(x)), and half the mean of |J inner|_F^2 + |J outer|_F^2.

    It bounds the mean nuclear norm of the Jacobian from above. Where it is minimized over the parameters of both
    modules, the bound is tight, if they can scale their latent variables.

    Args:
        inner: from inputs to latent variables.
        outer: from latent variables to outputs. Its Jacobian is taken at the latent variables, through which the
            penalty's gradient also reaches `inner`.
        inputs: the inputs ``(m, ...)``, floating.
        seed: of the directions. Give another one at each step.
        projections: how many directions are drawn for each example and module. None: all, the exact value.
        coupled: as in `jacobian_frobenius`.

    Returns:
        The outputs, and the estimate, a scalar tensor.

    Example:
        >>> import torch
        >>> from frechet.train import jacobian_nuclear
        >>> h, g = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = h.weight.copy_(2 * torch.eye(2)), g.weight.copy_(2 * torch.eye(2))
        >>> y, penalty = jacobian_nuclear(h, g, torch.randn(5, 2), seed=0, projections=None)
        >>> float(penalty.detach())  # the singular values of 4 I add up to 8
        8.0
    """
    refuse_coupled_examples("jacobian_nuclear", (inner, outer), coupled)
    with torch.enable_grad(), _twice():
        x = _opened("jacobian_nuclear", inputs)
        z = _tensor("jacobian_nuclear", inner(x))
        y = _tensor("jacobian_nuclear", outer(z))
        first = _squares("jacobian_nuclear", z, x, seed, projections)
        # directions of its own: equal ones would correlate the two terms
        second = _squares("jacobian_nuclear", y, z, seed, projections, later=z.shape[1:].numel())
    return _as_asked(y, (first + second) / 2)


def jacobian_asymmetry(
    field: Callable[[Tensor], Tensor], state: Tensor, *, seed: int, probes: int | None = 1, route: Route = "forward"
) -> tuple[Tensor, Tensor]:
    """Return field(state), and the mean squared Frobenius norm of J - J', J the Jacobian of the field of an example.

    Take it at a fixed point of the field. Where the state does not require a gradient, its dependence on the
    parameters does not enter.

    Args:
        field: from states ``(m, ...)`` to tensors of their shape, each example on its own: a module or a function.
        state: the states, floating.
        seed: of the directions. Give another one at each step.
        probes: how many directions are drawn for each example. None: all n entries of a state, the exact value.
        route: how J v comes: ``"forward"``, or ``"reverse"`` for fields without a forward mode, at twice the cost.

    Returns:
        The field, and the estimate, a scalar tensor.

    Raises:
        ValueError: the field has another shape than the state, or a module couples the examples.
        NotDifferentiable: an operation of the field has no forward mode.

    Example:
        >>> import torch
        >>> from frechet.train import jacobian_asymmetry
        >>> field = torch.nn.Linear(3, 3)
        >>> _, penalty = jacobian_asymmetry(field, torch.randn(5, 3), seed=0, probes=None)
        >>> bool(torch.isclose(penalty, (field.weight - field.weight.T).square().sum()))
        True
    """
    what = "jacobian_asymmetry"
    if route not in ("forward", "reverse"):
        raise ValueError(f"{what}: route must be 'forward' or 'reverse', got {route!r}")
    if isinstance(field, nn.Module):
        refuse_coupled_examples(what, (field,), False)
    with torch.enable_grad(), second_order(what, state.device):
        z = _opened(what, state)
        directions = _directions(what, z, seed, probes, 0)
        total, y = z.new_zeros(()), z
        for v in directions:
            y, forth, back = _both(field, z, v, route)
            total = total + (forth - back).square().sum()
    n = z[0].numel()
    return _as_asked(y, total * (n / len(directions) / len(z)))


def _both(field: Callable[[Tensor], Tensor], z: Tensor, v: Tensor, route: Route) -> tuple[Tensor, Tensor, Tensor]:
    """field(z), J v and J'v, with their graphs."""
    if route == "forward":
        with dual_numbers():
            y = _like_state(field(torch.autograd.forward_ad.make_dual(z, v)), z)
            y, forth = torch.autograd.forward_ad.unpack_dual(y)
        (back,) = grads(y, [z], [v], create_graph=True)
        return y, torch.zeros_like(y) if forth is None else forth, back
    y, w = _like_state(field(z), z), torch.zeros_like(z).requires_grad_()
    (pulled,) = grads(y, [z], [w], create_graph=True)  # J'w, linear in w
    (forth,) = grads(pulled, [w], [v], create_graph=True)
    (back,) = grads(y, [z], [v], create_graph=True)
    return y, forth, back


def _like_state(y: object, z: Tensor) -> Tensor:
    y = _tensor("jacobian_asymmetry", y)
    if y.shape != z.shape:
        raise ValueError(
            f"jacobian_asymmetry: field must return the state's shape {tuple(z.shape)}, got {tuple(y.shape)}"
        )
    return y


# --- what they share --------------------------------------------------------------------------------------------------


def _squares(what: str, y: Tensor, x: Tensor, seed: int, projections: int | None, later: int = 0) -> Tensor:
    """The mean over the examples of |J|_F^2 for the outputs y of x, with its graph."""
    refuse_once_differentiable([y])
    if not y.requires_grad:
        raise NotDifferentiable(
            f"{what}: the outputs must depend on the inputs by torch operations, got none of them"
            + ("; leave torch.inference_mode" if torch.is_inference_mode_enabled() else "")
        )
    if not y.ndim or len(y) != len(x):
        raise ValueError(
            f"{what}: outputs must have the {len(x)} examples of the inputs on axis 0, got shape {tuple(y.shape)}; let "
            "the model return (examples, ...)"
        )
    directions = _directions(what, y, seed, projections, later)
    total = x.new_zeros(())
    for v in directions:
        (pulled,) = grads(y, [x], [v], create_graph=True)
        total = total + pulled.square().sum()
    return total * (y[0].numel() / len(directions) / len(y))


def _directions(what: str, y: Tensor, seed: int, count: int | None, later: int) -> list[Tensor]:
    """Directions shaped like y, orthonormal for each example."""
    m, size = len(y), y.shape[1:].numel()
    if m == 0 or size == 0:
        raise ValueError(f"{what}: there must be examples and outputs, got the shape {tuple(y.shape)}")
    if count is None or count == size:
        units = torch.eye(size, dtype=y.dtype, device=y.device)
        return [u.expand(m, size).reshape(y.shape) for u in units]
    if not 1 <= count < size:
        raise ValueError(f"{what}: between 1 and {size} directions can be drawn, got {count}; None takes all")
    probes = range(later, later + count)
    Z = euclidean(m * size, torch.float64, "cpu").random(probes, seed, "gaussian").view(m, size, count)
    Q = Z * Z.square().sum(1, keepdim=True).rsqrt() if count == 1 else torch.linalg.qr(Z)[0]
    return [v.reshape(y.shape).to(y.device, y.dtype) for v in Q.unbind(2)]


def _twice() -> ExitStack:
    """Kernels with second derivatives, for a forward pass in an ordinary training loop."""
    stack = ExitStack()
    for context in (unfused_attention(), recurrence_without_cudnn(), refused_reentrant_checkpoints()):
        stack.enter_context(context)
    return stack


def refuse_coupled_examples(what: str, modules: tuple[nn.Module, ...], coupled: bool) -> None:
    """Raise where a module couples the examples of a batch, unless that is allowed."""
    for module in modules:
        found = couplings(module, training_flags(module))
        if found and not coupled:
            raise ValueError(
                f"{what}: module {found[0]} normalizes by the statistics of the batch, so no example has a Jacobian of "
                "its own; call eval() on it, take another normalization, or pass coupled=True for the Jacobian of the "
                "whole batch"
            )


def _opened(what: str, x: Tensor) -> Tensor:
    """The inputs as something to differentiate in. What they came from stays connected."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{what}: inputs must be a floating tensor (examples, ...), got {got}")
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def _tensor(what: str, y: object) -> Tensor:
    if not isinstance(y, Tensor):
        raise TypeError(f"{what}: the model must return a tensor, got {type(y).__name__}; wrap it in one that does")
    return y


def _as_asked(y: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Without their graphs, where gradients are off."""
    return (y, penalty) if torch.is_grad_enabled() else (y.detach(), penalty.detach())
