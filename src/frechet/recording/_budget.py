"""What a linearization holds, how much more it may hold, what it takes and what it saves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from frechet.recording._copies import storage_of
from frechet.recording._replay import Replay

SLACK = 1 << 20  # bytes of constants that code may hold beside what is kept: tables, masks, numbers


@dataclass(eq=False)
class Budget:
    """What is held so far, and how much more may be; the seconds of plain products and of those played back."""

    most: float
    compile: bool = False
    replays: list[Replay] = field(default_factory=list)
    storages: dict[int, int] = field(default_factory=dict)  # bytes
    apart: set[int] = field(default_factory=set)  # storages that are not counted: the operator holds them anyway
    plain: float = 0.0  # seconds, of the batches that recordings serve
    played: float = 0.0
    released: bool = False

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())

    def hold_apart(self, tensors: Iterable[Tensor]) -> None:
        self.apart |= {storage_of(t) for t in tensors}

    def fits(self, *replays: Replay) -> bool:
        """Whether what recordings hold may be held beside what is held already."""
        new = {key: size for replay in replays for key, size in self._new(replay).items()}
        slack = SLACK if all(replay.before is not None for replay in replays) else 0
        return self.bytes + sum(new.values()) <= max(self.most, slack)

    def hold(self, replay: Replay) -> Replay:
        """Count what a recording holds from now on."""
        if not any(replay is r for r in self.replays):
            self.replays.append(replay)
            self.storages.update(self._new(replay))
        return replay

    def _new(self, replay: Replay) -> dict[int, int]:
        known = self.apart | self.storages.keys()
        return {key: size for key, size in replay.storages.items() if key not in known}

    def forget(self, count: int = 0) -> None:
        """Free all recordings but the first `count`."""
        for replay in self.replays[count:]:
            replay.constants.clear()
            if replay.before is not None:
                replay.before.constants.clear()
        del self.replays[count:]
        self.storages = {}
        for replay in self.replays:
            self.storages.update(self._new(replay))

    def note(self, plain: float, played: float) -> None:
        """Add the seconds of one batch's product, and of the same one played back."""
        self.plain += plain
        self.played += played
