"""Kronecker-factored curvature: K-FAC and EK-FAC as operators with closed forms.

For a layer with inputs a and slopes b (see `_kfac_layers.py`), the block of the Fisher or Gauss-Newton matrix

    1/count  sum_n  E (sum_t b_nt kron a_nt)(sum_t b_nt kron a_nt)'

is replaced by B kron A:

    expand    B = 1/count sum_nt E b b',             A = mean over n and t of a a'
    reduce    B = 1/count sum_n  E (sum_t b)(...)',  A = mean over n of (mean_t a)(...)'

"expand" is exact where the positions t are independent, as in a loss per token; "reduce" where the model averages over
them before the loss. EK-FAC keeps the eigenvectors of A and B and replaces the eigenvalues by the second moments of
each example's gradient in that basis, so that the trace of each block is exact. Embeddings have a diagonal A;
normalizations have the exact diagonal of their block.

E is exact by the square root of the criterion's Hessian or of the score's covariance, one backward pass for each of its
columns; or over labels that are drawn; or over the actual targets.

**Source.** J. Martens, R. Grosse (2015), arXiv 1503.05671; T. George et al. (2018), arXiv 1806.03884 (EK-FAC); R.
Eschenhagen et al. (2023), arXiv 2311.00636 (expand and reduce).
**Differs from the source.** (1) Embeddings and normalizations. (2) In padded sequences, positions that no loss reaches
do not count in A. (3) On every batch the gradient of each weight is proved to be the sum of b a'.
**Cost.** A forward pass over the data, and as many backward passes as an example has outputs, or `samples`; twice for
EK-FAC. Memory: A and B of all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from frechet.errors import UnusableObjective
from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._coupling import check_additive
from frechet.objective.criteria import Criterion
from frechet.operators._constructors import block_diagonal
from frechet.operators._operator import LinearOperator
from frechet.operators._structured import Permuted
from frechet.operators.derivatives._joint import AtOutputs
from frechet.operators.derivatives._kfac_blocks import (
    KroneckerFactors,
    basis_of,
    block_of,
    corrected_block,
    factors_from,
    shapes_of,
)
from frechet.operators.derivatives._kfac_columns import Kind, roots_of
from frechet.operators.derivatives._kfac_layers import Call, Layer, layers_of, recorded
from frechet.operators.derivatives._kfac_proof import Elsewhere, prove, prove_rows
from frechet.operators.derivatives._kfac_sums import Factored, Sharing, Turned
from frechet.operators.derivatives._products import differentiating, grads
from frechet.space import Space, generator

NAME = "kfac"

Others = Literal["diagonal", "refuse"]


@dataclass(frozen=True, eq=False, repr=False)
class Kfac(Permuted):
    """The operator, with the factors of each layer."""

    layers: tuple[KroneckerFactors, ...] = ()


def kfac(
    objective: Objective,
    *,
    kind: Kind = "fisher",
    sharing: Sharing = "expand",
    corrected: bool = False,
    joint: bool = True,
    others: Others = "diagonal",
    seed: int | None = None,
    samples: int = 1,
    padded: bool | None = None,
    x: Tensor | Mapping[str, Tensor] | None = None,
    restrict: str | list[str] | None = None,
) -> Kfac:
    """Return the Kronecker-factored approximation of the Fisher or Gauss-Newton matrix, block by block of the layers.

    Inverses, square roots, traces, diagonals and determinants have closed forms, also of a sum with a multiple of the
    identity: `frechet.operators.inverse`, `square_root`, `frechet.trace`, and so on. Penalties are left out.

    Args:
        objective: the objective. Examples must not depend on each other.
        kind: ``"fisher"``, ``"gauss_newton"``, ``"empirical_fisher"``: the operators of these names with one block
            for each layer; the last per example. ``"forward_only"`` has B = I, and no backward pass enters it.
        sharing: how positions of an example (tokens, patches) are treated, see the module. Embeddings always expand.
        corrected: EK-FAC, with exact second moments in the factors' eigenbasis.
        joint: whether the weight and the bias of a layer are one block, or each its own.
        others: what becomes of parameters outside of Linear, convolutional, embedding and normalization layers, and of
            those that the model uses in other ways too: ``"diagonal"``, the exact diagonal of their block, a backward
            pass for each example and column; or ``"refuse"``.
        seed: the seed of labels drawn from the likelihood, for ``"fisher"``. Default: the exact expectation.
        samples: how many sets of labels are drawn.
        padded: whether positions that no loss reaches are left out of the inputs' factor. Default: where the inputs
            have an ``attention_mask`` with zeros.
        x: the point ``(n,)``, or a dict of tensors. Default: the model's present parameters.
        restrict: a glob pattern, or several, of the parameters. Default: all trainable ones.

    Returns:
        A symmetric operator; ``.layers`` has the factors. B kron A acts on the weight and the bias together.

    Raises:
        UnusableObjective: with ``others="refuse"``, a parameter is in no layer of a known kind, or is used outside of
            its layer.
        ValueError: an example has more than 1 024 outputs and no labels are drawn; or the Gauss-Newton matrix of a
            criterion that is not convex.

    Example:
        >>> import torch
        >>> from frechet import Objective, identity, squared_error
        >>> from frechet.operators import inverse
        >>> from frechet.operators.derivatives import kfac
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> X = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> F = kfac(Objective(model, squared_error(), [(X, torch.zeros(2, 1))]))
        >>> F.dense().round(decimals=4)  # exact for one linear layer: 2 X'X / 2
        tensor([[1., 0.],
                [0., 4.]])
        >>> inverse(F + identity(F.domain)).dense().round(decimals=4)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2000]])
    """
    _check(objective, kind, sharing, seed, samples, corrected)
    snapshot = objective.snapshot(x)
    space = snapshot.space if restrict is None else snapshot.space.restrict(restrict)
    if space.shard is not None:
        raise ValueError("kfac: parameters must be whole on every rank, got sharded ones (fully_shard)")
    snapshot.refuse_coupled(NAME)
    run, factors = _settled(_Run(snapshot, space, [], [], kind, sharing, seed, samples, padded), others)
    pieces = [p for layer, f in zip(run.layers, factors, strict=True) for p in _pieces(layer, f, joint)]
    blocks = run.corrected(pieces) if corrected else [block_of(p.factors, space) for p in pieces]
    order = torch.cat([p.shape.order(space) for p in pieces])
    return Kfac(block_diagonal(*blocks), order, space, tuple(p.factors for p in pieces))


def _settled(run: _Run, others: Others) -> tuple[_Run, list[KroneckerFactors]]:
    """The run in which each layer is what its gradients say, and its factors."""
    elsewhere: set[str] = set()
    while True:
        layers, rest = layers_of(run.snapshot, run.space, elsewhere)
        if rest and others == "refuse":
            raise UnusableObjective(
                "kfac: parameters must belong to Linear, Conv, Embedding or normalization modules, each to one, got "
                f"{rest[:3]}; leave them out with restrict=, or take others='diagonal'"
            )
        single = [Layer(run.snapshot.model, "other", n, None) for n in rest]
        now = replace(run, layers=[*layers, *single], rest=rest)
        try:
            return now, now.factors()
        except Elsewhere as found:
            if others == "refuse":
                raise UnusableObjective(str(found)) from None
            elsewhere.update(found.names)


@dataclass(frozen=True, eq=False)
class _Piece:
    """One block: of a layer, or of its weight or its bias alone."""

    layer: Layer  # whose calls it is made of
    shape: Layer  # with the parameters of this block
    factors: KroneckerFactors
    columns: slice  # of the inputs


def _pieces(layer: Layer, f: KroneckerFactors, joint: bool) -> list[_Piece]:
    A = f.inputs
    if joint or A is None or layer.weight is None or layer.bias is None:
        return [_Piece(layer, layer, f, slice(None))]
    weight, bias = slice(None, -1), slice(-1, None)
    return [
        _Piece(
            layer, replace(layer, bias=None), KroneckerFactors(f.names[:1], A[:, weight, weight], f.outputs), weight
        ),
        _Piece(layer, replace(layer, weight=None), KroneckerFactors(f.names[1:], A[:, bias, bias], f.outputs), bias),
    ]


# --- one pass over the data -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Run:
    """A call of `kfac`."""

    snapshot: Snapshot
    space: Space
    layers: list[Layer]
    rest: list[str]  # parameters in none of them
    kind: Kind
    sharing: Sharing
    seed: int | None
    samples: int
    padded: bool | None
    streams: dict[int, list[torch.Generator]] = field(default_factory=dict)

    def factors(self) -> list[KroneckerFactors]:
        """A and B of each layer."""
        shapes = [shapes_of(layer, self.space) for layer in self.layers]
        sizes = [sum(torch.Size(s).numel() for s in shape) for shape in shapes]
        diagonal = [layer.kind in ("scale", "other") for layer in self.layers]

        def contribute(part: Part, batch: Batch) -> Tensor:
            fresh = [None if d else Factored(self.sharing, self._padded(batch)) for d in diagonal]
            squares = [self.space.zeros()[:0].double().new_zeros(n) for n in sizes]
            for calls, slopes, rest in self._slopes(part, batch, self.rest):
                for i, layer in enumerate(self.layers):
                    if layer.kind == "other":
                        squares[i] = squares[i] + rest[layer.names[0]]
                        continue
                    own = [(c, b) for c, b in zip(calls, slopes, strict=True) if c.layer is layer]
                    if (factored := fresh[i]) is not None:
                        factored.add(own)
                    elif own:
                        total = torch.stack([c.gradients(b) for c, b in own]).sum(0)
                        squares[i] = squares[i] + total.double().square().sum(0)
            found = [sq if f is None else f.flat(shape) for f, sq, shape in zip(fresh, squares, shapes, strict=True)]
            return torch.cat(found) * (part.weight if self.kind == "empirical_fisher" else 1.0)

        start = torch.zeros(sum(sizes), dtype=torch.float64, device=self.space.device)
        total = self._averaged(contribute, start)
        return [
            factors_from(layer, part, shape, self.kind)
            for layer, part, shape in zip(self.layers, total.split(sizes), shapes, strict=True)
        ]

    def corrected(self, pieces: Sequence[_Piece]) -> list[LinearOperator]:
        """The blocks of EK-FAC: second moments of gradients in the eigenbasis of A and B."""
        bases = [basis_of(p.factors) for p in pieces]
        sizes = [p.shape.order(self.space).numel() for p in pieces]

        def contribute(part: Part, batch: Batch) -> Tensor:
            squares = [torch.zeros(n, dtype=torch.float64, device=self.space.device) for n in sizes]
            turned = [None if b is None else Turned(*b, p.columns) for p, b in zip(pieces, bases, strict=True)]
            for calls, slopes, _ in self._slopes(part, batch, []):
                for i, (piece, basis) in enumerate(zip(pieces, turned, strict=True)):
                    own = [(c, b) for c, b in zip(calls, slopes, strict=True) if c.layer is piece.layer]
                    if own and basis is not None:
                        squares[i] += basis.squares(own)
            return torch.cat(squares) * (part.weight if self.kind == "empirical_fisher" else 1.0)

        start = torch.zeros(sum(sizes), dtype=torch.float64, device=self.space.device)
        total = self._averaged(contribute, start).split(sizes)
        return [
            block_of(p.factors, self.space) if basis is None else corrected_block(p.factors, basis, values, self.space)
            for p, basis, values in zip(pieces, bases, total, strict=True)
        ]

    def _averaged(self, contribute, start: Tensor) -> Tensor:
        rank = () if self.snapshot.group is None else (self.snapshot.group.rank,)
        if self.seed is not None:
            self.streams = {
                id(part): [generator(self.seed, j, i, *rank) for i in range(self.samples)]
                for j, part in enumerate(self.snapshot.parts)
            }
        with differentiating(NAME, self.space.device):
            return self.snapshot.average(
                contribute, NAME, _per_example if self.kind == "empirical_fisher" else None, start=start
            )

    def _padded(self, batch: Batch) -> bool:
        if self.padded is not None:
            return self.padded
        mask = batch.inputs.get("attention_mask") if isinstance(batch.inputs, Mapping) else None
        return isinstance(mask, Tensor) and bool((mask == 0).any())

    def _slopes(
        self, part: Part, batch: Batch, rest: list[str]
    ) -> Iterator[tuple[list[Call], list[Tensor], dict[str, Tensor]]]:
        """The calls of the layers on a batch, and the slopes in their outputs, for one column of E after the other.

        Also the sum of the squares of each example's gradient in the parameters `rest`.
        """
        s = self.snapshot
        leaves, blocks = s.leaves(self.space)
        with torch.enable_grad(), s.installed(blocks):
            with recorded([la for la in self.layers if la.kind != "other"]) as calls:
                y = s.forward(blocks, batch)
            if not batch.examples or not y.numel():
                return
            criterion = s.criterion(part, batch)
            if AtOutputs(s, part, batch, (leaves, blocks), y).reads_parameters:
                raise UnusableObjective("kfac: the criterion must not read parameters of the model; use gauss_newton")
            prove_rows(calls, batch.examples)
            columns = list(self._columns(part, criterion, y.detach(), batch))
            outputs = [c.output for c in calls]
            for j, u in enumerate(columns):
                own = leaves if j == 0 else []  # every batch is proved, with its first column
                last = j + 1 == len(columns)
                wanted = [*own, *outputs]
                found = grads(y, wanted, [u], retain_graph=bool(rest) or not last) if wanted else []
                if j == 0:
                    recordable = [la for la in self.layers if la.kind != "other"]
                    prove(self.space, found[: len(own)], calls, found[len(own) :], recordable)
                yield calls, found[len(own) :], _squares(y, u, {n: blocks[n] for n in rest}, keep=not last)

    def _columns(self, part: Part, criterion: Criterion, y: Tensor, batch: Batch) -> Iterator[Tensor]:
        """Vectors u like the outputs with E u u' = the matrix in the middle, for each example."""
        if self.kind in ("empirical_fisher", "forward_only"):
            check_additive(NAME, criterion, y, batch.targets, self.space.eps, 0)
            yield criterion.score(y, batch.targets)
        elif self.seed is not None:
            for stream in self.streams[id(part)]:
                yield criterion.score(y, criterion.sample(y, batch.targets, stream)) / self.samples**0.5
        else:
            yield from roots_of(criterion, y, batch.targets, self.kind)


def _squares(y: Tensor, u: Tensor, rest: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The sum over the examples of the squares of their gradients, flat, in float64."""
    total = {n: torch.zeros(t.numel(), dtype=torch.float64, device=t.device) for n, t in rest.items()}
    for i in range(len(y)) if rest else ():
        alone = torch.zeros_like(u)
        alone[i] = u[i]
        found = grads(y, list(rest.values()), [alone], retain_graph=keep or i + 1 < len(y))
        for n, g in zip(rest, found, strict=True):
            total[n] += g.reshape(-1).double().square()
    return total


def _per_example(count: float, examples: int) -> float:
    return examples / count**2


# --- arguments and proofs ---------------------------------------------------------------------------------------------


def _check(objective: object, kind: str, sharing: str, seed: int | None, samples: int, corrected: bool) -> None:
    if not isinstance(objective, Objective):
        raise TypeError(f"kfac: objective must be an Objective, got {type(objective).__name__}")
    kinds = ("fisher", "gauss_newton", "empirical_fisher", "forward_only")
    if kind not in kinds:
        raise ValueError(f"kfac: kind must be one of {', '.join(map(repr, kinds))}, got {kind!r}")
    if sharing not in ("expand", "reduce"):
        raise ValueError(f"kfac: sharing must be 'expand' or 'reduce', got {sharing!r}")
    if samples < 1 or (seed is None and samples > 1):
        raise ValueError(f"kfac: samples must be at least 1, and 1 without a seed, got {samples} with seed={seed}")
    if seed is not None and kind != "fisher":
        raise ValueError(f"kfac: labels are drawn for kind='fisher' alone, got seed={seed} with kind={kind!r}")
    if kind == "fisher":
        for part in objective.parts:
            part.criterion.require_likelihood()
    if seed is not None:
        generator(seed)
    if corrected and kind == "forward_only":
        raise ValueError("kfac: corrected needs slopes, got kind='forward_only'; choose one of the two")
