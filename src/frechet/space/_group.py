"""Processes that work on one problem together: what they tell each other, over torch.distributed.

Every method here that says so is collective: all processes of the group call it, in the same order. Sums are bit for
bit the same on every rank, because the backends reduce once and hand the result out. A failure on one rank is a failure
on all: `settle` raises the same error everywhere, so that no rank waits for one that has given up.

`shared` and `summed` are the two differentiable ones, and each other's derivative: a vector that is alike on all ranks,
used by each in its own way, has the sum over ranks as its derivative; a sum over ranks hands its derivative, alike on
all ranks, to each.

**Source.** Shoeybi et al., "Megatron-LM" (2019), arXiv 1909.08053, section 3: the operators f and g.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from frechet.errors import LostRank, NonFinite, NotDifferentiable, UnusableObjective

T = TypeVar("T")

# the kinds that keep their class when another rank raises them too, the special ones first
KINDS: tuple[type[Exception], ...] = (
    NonFinite, NotDifferentiable, UnusableObjective, ValueError, TypeError, OSError, RuntimeError,
)  # fmt: skip
SHARED = "raised on every rank"  # a note on an error that all ranks raise alike
WIDTH = 8
TILE = 1 << 14
PIECE = 1 << 18  # so that what is made of it stays in the cache


@dataclass(frozen=True)
class Group:
    """This process among those of a torch.distributed group: number `rank` of `size`."""

    processes: Any  # a ProcessGroup; None for all: kept alive, the default group may abort the process at its exit
    rank: int
    size: int

    @classmethod
    def of(cls, processes: dist.ProcessGroup | Literal["world"]) -> Group:
        """The group from a ProcessGroup, or from "world", the default one, which must be initialized."""
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                "group: torch.distributed must be initialized first, got no process group; call "
                "torch.distributed.init_process_group, or start with torchrun"
            )
        if isinstance(processes, str):
            if processes != "world":
                raise ValueError(f"group: must be a ProcessGroup or 'world', got {processes!r}")
            processes = cast("dist.ProcessGroup", dist.group.WORLD)
        if not isinstance(processes, dist.ProcessGroup):
            raise TypeError(f"group: must be a ProcessGroup or 'world', got {type(processes).__name__}")
        if dist.get_rank(processes) < 0:
            raise ValueError("group: this process must be a member of the group, got a group of other processes")
        rank, size = dist.get_rank(processes), dist.get_world_size(processes)
        return cls(None if processes is dist.group.WORLD else processes, rank, size)

    @property
    def device(self) -> torch.device:
        """Where small messages are made: on this rank's GPU if the group speaks only NCCL."""
        on_gpu = dist.get_backend(self.processes) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Collectives inside: what goes wrong in them says that another process is gone, or is elsewhere."""
        try:
            yield
        except RuntimeError as error:
            line = (str(error).strip().splitlines() or [""])[0]
            raise LostRank(
                f"rank {self.rank} of {self.size}: another process of the group ended or did not answer within the "
                f"group's timeout ({line[:160]})"
            ) from error

    # --- collective ---------------------------------------------------------------------------------------------------

    def add(self, t: Tensor) -> Tensor:
        """The sum of `t` over the ranks, in place. Collective."""
        with self._answered():
            dist.all_reduce(t, group=self.processes)
        return t

    def sum(self, t: Tensor, copy: bool = True) -> Tensor:
        """The sum of `t` over the ranks, wherever it lies: new, or in place with ``copy=False``. Collective."""
        # a tensor on the CPU travels by the GPU where the group speaks only NCCL
        place = t.device if self.device.type == "cpu" else self.device
        return self.add(t.detach().to(place, copy=copy)).to(t.device)

    def shared(self, t: Tensor) -> Tensor:
        """`t`, alike on all ranks; its derivative is summed over them. Collective when differentiated."""
        return _Shared.apply(t, self)  # type: ignore[no-any-return]

    def summed(self, t: Tensor) -> Tensor:
        """The differentiable sum over the ranks. Collective."""
        return _Summed.apply(t, self)  # type: ignore[no-any-return]

    def gather(self, t: Tensor) -> Tensor:
        """All ranks' `t` one after the other along axis 0, whose length may differ. Collective."""
        lengths = [row[1] for row in self.exchange([0, len(t)])]
        longest = max(lengths)
        whole = t.new_zeros((self.size, longest, *t.shape[1:]))
        whole[self.rank, : len(t)] = t
        whole = self.sum(whole)
        return torch.cat([whole[r, :length] for r, length in enumerate(lengths)])

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        """Every rank's `numbers`, at most `WIDTH`. Collective.

        Always of one length, and first among them whether this rank has failed: so one that has given up and one that
        still works meet in this call, wherever each of them is.
        """
        table = torch.zeros(self.size, WIDTH, dtype=torch.int64)
        table[self.rank, : len(numbers)] = torch.tensor(list(numbers), dtype=torch.int64)
        return self.sum(table)[:, : len(numbers)].tolist()

    def objects(self, item: T) -> list[T]:
        """Every rank's `item`, pickled. Collective."""
        found: list[Any] = [None] * self.size
        with self._answered():
            dist.all_gather_object(found, item, group=self.processes)
        return found

    def first(self, item: T) -> T:
        """Rank 0's `item`, pickled. Collective."""
        box: list[Any] = [item if self.rank == 0 else None]
        with self._answered():
            dist.broadcast_object_list(box, group_src=0, group=self.processes)
        return box[0]

    def settle(self, failure: Exception | None, where: str = "") -> None:
        """Raise on every rank what any rank has failed with. Collective."""
        if any(row[0] for row in self.exchange([failure is not None])):
            self.fail(failure, where)

    def fail(self, failure: Exception | None, where: str = "", what: str = "") -> None:
        """Raise the first rank's failure on every rank; at least one rank must have one. Collective."""
        told = self.objects(None if failure is None else (_kind(failure), _line(failure), where))
        rank, (kind, line, place) = next((r, entry) for r, entry in enumerate(told) if entry is not None)
        error = KINDS[kind](f"{what}rank {rank}{place}: {line}")
        error.add_note(SHARED)
        raise error from failure

    def together(self, work: Callable[[], T], where: str = "") -> T:
        """Return ``work()``. If it raises on one rank, every rank raises. `work` must not communicate. Collective."""
        return self.alike(work, {}, "", "", where)

    def alike(
        self, work: Callable[[], T], facts: Mapping[str, Callable[[T], int]], what: str, advice: str, where: str = ""
    ) -> T:
        """As `together`. Every rank raises, too, if one of the named numbers differs between ranks. Collective."""
        failure: Exception | None = None
        result: Any = None
        numbers = [0] * len(facts)
        try:
            result = work()
            numbers = [int(fact(result)) for fact in facts.values()]
        except Exception as error:
            if is_shared(error):  # a collective call inside has told everybody
                raise
            failure = error
        rows = self.exchange([failure is not None, *numbers])
        if any(row[0] for row in rows):
            self.fail(failure, where)
        for j, name in enumerate(facts, start=1):
            other = next((r for r, row in enumerate(rows) if row[j] != rows[0][j]), None)
            if other is not None:
                error = ValueError(f"{what}: {name} must be the same on all ranks, but 0 and {other} differ; {advice}")
                error.add_note(SHARED)
                raise error
        return result


def is_shared(error: BaseException | None) -> bool:
    """Whether all ranks of a group have raised `error`, or what it was raised from."""
    return error is not None and (SHARED in getattr(error, "__notes__", ()) or is_shared(error.__cause__))


def _kind(error: Exception) -> int:
    return next((i for i, kind in enumerate(KINDS) if isinstance(error, kind)), len(KINDS) - 1)


def _line(error: Exception) -> str:
    """One line; with the class where that is not one of `KINDS` and says something (KeyError: 'x')."""
    text = " ".join(str(error).split())
    return text if isinstance(error, KINDS) else f"{type(error).__name__}: {text}"


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.sum(t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.group.shared(grads[0]), None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.group.summed(grads[0]), None


@torch.no_grad()
def digest(t: Tensor) -> int:
    """Return a hash of 32 bits: two tensors of one shape with other bits share it with a probability of some 1e-9."""
    flat = t.detach().contiguous().reshape(-1)
    words = flat.view(torch.int32) if flat.element_size() % 4 == 0 else flat.view(torch.uint8).to(torch.int32)
    # odd factors keep every bit, the shifts carry high bits down; everything wraps around
    tile = torch.arange(TILE, device=t.device).mul_(0x9E3779B1).bitwise_or_(1).to(torch.int32)
    while True:
        rows = []
        for a in range(0, words.numel(), PIECE):
            piece = words[a : a + PIECE]
            if len(piece) % TILE:
                piece = torch.nn.functional.pad(piece, (0, -len(piece) % TILE))
            mixed = (piece >> 15).bitwise_xor_(piece).view(-1, TILE).mul_(tile)
            rows.append(mixed.bitwise_xor_(mixed >> 13).sum(1, dtype=torch.int32))
        words = torch.cat(rows) if rows else words.new_zeros(1)
        if words.numel() == 1:
            return int(words)


@torch.no_grad()
def sketch(V: Tensor) -> float:
    """A number that tells blocks ``(n, k)`` apart that differ by much more than rounding."""
    flat = V.detach().T.reshape(-1)
    weights = torch.arange(TILE, dtype=torch.float64).square_().mul_(0.6180339887498949).frac_().sub_(0.5)
    weights = weights.to(flat.device, flat.dtype)
    whole = flat.numel() - flat.numel() % TILE
    rows = torch.cat([flat[:whole].view(-1, TILE) @ weights, (flat[whole:] @ weights[: flat.numel() - whole])[None]])
    places = torch.arange(len(rows), device=rows.device).to(rows.dtype).add_(1).rsqrt_()
    return float((rows * places).sum())
