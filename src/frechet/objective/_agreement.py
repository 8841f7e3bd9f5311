"""What the processes of a group must have alike: the model's shape, the criterion, the point and the model's state.

Each is compared as one number of every rank, in the exchange that also tells all ranks of a failure on one of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from frechet.objective._data import Subsample
from frechet.objective._fully_shard import is_sharded
from frechet.objective._group import one_population
from frechet.objective._parts import Part
from frechet.objective._snapshot import Snapshot
from frechet.space import Group, Space, digest

Made = tuple[nn.Module, Part, Space]


def agreed_part(group: Group, make: Callable[[], Made], data: Iterable[Any], penalized: bool) -> tuple[nn.Module, Part]:
    """The model and the data term that `make` makes of this rank's `data`; raises where ranks differ. Collective."""
    facts: dict[str, Callable[[Made], int]] = {
        "the parameters' names, shapes and type": lambda made: _number((made[2].names, made[2].shapes, made[2].dtype)),
        "the criterion's class": lambda made: _number(type(made[1].criterion).__name__),
        "the penalty's presence": lambda _made: penalized,
    }
    advice = "build the same objective on every rank, each with its own data"
    model, part, _ = group.alike(make, facts, "Objective", advice)
    share = (data.examples, data.population) if isinstance(data, Subsample) else None
    return model, replace(part, population=one_population(group, share, "Objective"))


def agreed_snapshot(group: Group, take: Callable[[], Snapshot], kept: bool) -> Snapshot:
    """The snapshot that `take` takes; raises where ranks differ in what can be compared. Collective."""
    facts: dict[str, Callable[[Snapshot], int]] = {
        "the point x": lambda s: digest(s.x) if s.space.shard is None else 0,
        "training mode, parts and their weights": lambda s: _number((s.flags, [p.weight for p in s.parts])),
    }
    if kept:  # what is kept is compared, as far as it is kept whole
        facts["buffers and frozen parameters"] = lambda s: _number(
            [digest(t) for t in s.constants.values() if not is_sharded(t)]
        )
    advice = "send rank 0's model to the others (torch.distributed.broadcast)"
    return group.alike(take, facts, "Objective", advice)


def _number(facts: object) -> int:
    """A number by which to compare `facts` between processes."""
    return zlib.crc32(repr(facts).encode())
