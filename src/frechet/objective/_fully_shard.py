"""Models whose parameters are sharded over processes by ``fully_shard``: what each holds, and how they run without it.

Every pass gathers the parameters once, runs the model on this process's data as if it were whole, and adds up the sums
of all ranks; vectors stay in pieces between passes. Gathering layer by layer inside of a pass, which is what
``fully_shard`` does when it trains, has no second derivatives through ``autograd.grad``. Plain modules on DTensors have
them, but (torch 2.13) only where rows and batches divide evenly and every operation has a sharding rule: not for
convolutions, attention or ranks with unequal data; and a rank that fails in the middle leaves the others waiting.

So ``fully_shard``'s hooks are taken off for the time of a pass; they would put their own parameters into the modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any, TypeGuard

import torch.distributed as dist
from torch import Tensor, nn

from frechet.errors import UnusableObjective
from frechet.space import Group, Shard, Space

FSDP = "torch.distributed.fsdp."


def is_sharded(t: Any) -> TypeGuard[Any]:
    """Whether `t` is a DTensor, of which this process holds a part."""
    return type(t).__name__ == "DTensor"


def local(t: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return t.detach().to_local() if is_sharded(t) else t.detach()


def whole_tensor(t: Tensor) -> Tensor:
    """A tensor with the parts of all processes. Collective where it is sharded."""
    return t.full_tensor() if is_sharded(t) else t


def refuse_other_shards(model: nn.Module) -> None:
    """Raise for parameters in pieces of a kind that cannot be gathered here."""
    for name, m in model.named_modules():
        if type(m).__name__ == "FullyShardedDataParallel":
            raise UnusableObjective(
                f"Objective: parameters may be sharded by fully_shard, got module '{name}' (FullyShardedDataParallel); "
                "load its full state dict into a model of its own, and give the data with group="
            )


def _is_fsdp(m: nn.Module) -> bool:
    return any(c.__name__ == "FSDPModule" for c in type(m).__mro__)


def resharded(model: nn.Module) -> nn.Module:
    """`model`, after whatever its last forward pass has left gathered was given back."""
    for m in model.modules():
        if _is_fsdp(m):
            m.reshard()  # type: ignore[operator]
    return model


def sharded_space(model: nn.Module, space: Space, group: Group | None) -> Space:
    """`space`, the one of the model's trainable parameters, in the pieces in which this process holds them."""
    parameters: dict[str, Any] = dict(resharded(model).named_parameters())
    pieces = [name for name, p in parameters.items() if is_sharded(p)]
    if not pieces:
        return space
    if group is None:
        raise UnusableObjective(
            f"Objective: parameter '{pieces[0]}' is sharded over {parameters[pieces[0]].device_mesh.size()} processes, "
            'so they must work together; give group="world", or the process group over which it is sharded'
        )
    ranks = dist.get_process_group_ranks(group.processes)
    for name in pieces:
        mesh, placements = parameters[name].device_mesh, parameters[name].placements
        if mesh.ndim != 1 or not placements[0].is_shard(0):
            raise UnusableObjective(
                f"Objective: parameters must be sharded by rows over one mesh dimension, got '{name}' with "
                f"{tuple(placements)}; load every p.full_tensor() into a model of its own, and give the data with "
                "group="
            )
        if mesh.mesh.flatten().tolist() != ranks:
            raise UnusableObjective(
                f"Objective: group must be the processes over which the parameters are sharded, got {ranks} and "
                f"'{name}' on {mesh.mesh.flatten().tolist()}"
            )
    for name in space.names:
        if name not in pieces:
            raise UnusableObjective(
                f"Objective: either all trainable parameters must be sharded or none, got '{name}' whole and "
                f"'{pieces[0]}' sharded; call fully_shard on the whole model, last"
            )
    rows = tuple(_rows(parameters[name], group) for name in space.names)
    return replace(space, shard=Shard(group, rows))


def _rows(p: Any, group: Group) -> tuple[int, int]:
    """The first row of the piece of this rank, and their number: like torch.chunk, so the last ranks may have none."""
    step = -(-p.shape[0] // group.size)
    first = min(group.rank * step, p.shape[0])
    count = p.to_local().shape[0]
    assert count == min(step, p.shape[0] - first), "torch has changed how it shards"
    return first, count


@contextmanager
def without_gathering(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The modules without what ``fully_shard`` runs around their forward methods."""
    hooks: list[tuple[dict[int, Any], dict[int, Any]]] = []
    methods: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for m in modules:
            for found in (m._forward_pre_hooks, m._forward_hooks):
                if any(_gathers(hook) for hook in found.values()):
                    hooks.append((found, dict(found)))
                    for key in [key for key, hook in found.items() if _gathers(hook)]:
                        del found[key]
            wrapped = [(key, v) for key, v in m.__dict__.items() if isinstance(v, MethodType)] if _is_fsdp(m) else []
            for key, method in wrapped:
                if _gathers(method):  # the class has the method itself
                    methods.append((m.__dict__, key, method))
                    del m.__dict__[key]
        yield
    finally:
        for found, before in reversed(hooks):  # in their order, which matters
            found.clear()
            found.update(before)
        for attributes, key, method in methods:
            attributes[key] = method


def _gathers(hook: Any) -> bool:
    """Whether this is a hook of fully_shard, or a method wrapped by register_fsdp_forward_method."""
    function = getattr(hook, "__func__", hook)
    # what functools.wraps makes has the name and the module of the function inside
    home = getattr(function, "__globals__", {}).get("__name__", "")
    return any((name or "").startswith(FSDP) for name in (home, getattr(function, "__module__", None)))
