"""Matrices of the form J' C J: Gauss-Newton, Fisher, empirical Fisher.

J is the Jacobian of all outputs in the parameters, C acts on each term's outputs: the criterion's Hessian
(Gauss-Newton), the covariance of the likelihood's score (Fisher: exact, or from drawn labels), the outer product of the
actual score (empirical Fisher). Only J v, C and J' are applied, so no per-example gradient is ever stored. An objective
with `head=` has J and J' of its body only, see `_chunked_head`.

Forward route: the first column of a block rides on the forward pass as dual numbers, whose primal part keeps the graph
for J'; further columns cost a forward pass each. Reverse route: J v is the derivative of J'u in a dummy cotangent u.

**Source.** Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", Neural Computation
14 (2002); Martens, JMLR 21 (2020), sections 8-10; Kunstner, Balles, Hennig, "Limitations of the empirical Fisher
approximation" (2019), arXiv 1905.12558.
**Cost** in gradients: forward 1.7 to 1.9 for the first column of a block, 1.5 to 1.8 for each further one; reverse 2.2
to 2.5 (3.3 with convolutions) and 1.1 to 1.4 (2.5). One pass over the data per block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from frechet.objective import Batch, Objective, Part, Snapshot
from frechet.objective._coupling import check_additive, refuse_unseen
from frechet.objective._head import Head
from frechet.objective._kernels import refused_hooks
from frechet.objective.criteria import Criterion
from frechet.operators._operator import PSD, SYMMETRIC, Fact, LinearOperator
from frechet.operators.derivatives._chunked_head import add_headed, head_blocks
from frechet.operators.derivatives._joint import AtOutputs, Push
from frechet.operators.derivatives._modes import Route, Way, chosen, forward_only, refuse_padded_embedding
from frechet.operators.derivatives._on_batches import primal_and_tangent, prove_adjoint
from frechet.operators.derivatives._products import Leaves, Sums, dual_numbers, grads
from frechet.operators.derivatives._sum_over_data import Adding, SumOverData
from frechet.space import Space, generator

# the middle factor on one batch, or on some rows of it in order: (part, criterion, outputs, targets) -> (u -> C u),
# where the criterion is the part's, or its like for rows; made anew for each pass
OnBatch = Callable[[Part, Criterion, Tensor, Tensor], Callable[[Tensor], Tensor]]
Middle = Callable[[], OnBatch]
OfCriterion = Callable[[AtOutputs, Push, list[list[Tensor]], Sums], None]

_CHECKPOINTED = (
    "{}: route='forward' cannot go through activation checkpoints or other hooks on saved tensors; use route='reverse'"
)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class OutputProduct(SumOverData):
    """J' C J of an objective at one moment, on the blocks of `domain`; `name` says which C."""

    way: Way
    middle: Middle
    coupled: bool = False  # C couples the rows of an example: it is the outer product of the example's score
    of_criterion: OfCriterion | None = None  # the product where the criterion reads parameters itself

    @property
    def route(self) -> Route:
        """The route that products take, which the first product may have changed where it was left open."""
        return self.way.route

    def __repr__(self) -> str:
        return super().__repr__().replace(type(self).__name__, self.name, 1)

    def _matmat(self, V: Tensor) -> Tensor:
        return self.way.along(partial(super()._matmat, V))

    def adding(self) -> Adding:
        middle = self.middle()

        def add(leaves: Leaves, part: Part, batch: Batch, vectors: list[list[Tensor]], sums: Sums) -> None:
            with torch.enable_grad():
                y, push = self._push(*leaves, vectors, batch, part.head)
                if part.head is not None:
                    headed, where = self.snapshot.head_rows(part, leaves[1], batch, y), head_blocks(part, self.domain)
                    of_rows = None if self.coupled else partial(middle, part, headed.criterion)
                    add_headed(headed, where, push, of_rows, leaves[0], vectors, sums)
                    return
                criterion = self.snapshot.criterion(part, batch)
                outputs = AtOutputs(self.snapshot, part, batch, leaves, y)
                if self.of_criterion is not None and outputs.reads_parameters:
                    refuse_unseen(self.name, criterion, y.detach(), batch.targets)
                    self.of_criterion(outputs, push, vectors, sums)
                    return
                C = middle(part, criterion, y.detach(), batch.targets)
                for i in range(len(vectors)):
                    u = C(push(i)).detach()
                    sums.add(i, grads(y, leaves[0], [u], retain_graph=i + 1 < len(vectors)))

        return add

    def _push(
        self,
        leaves: list[Tensor],
        blocks: dict[str, Tensor],
        vectors: list[list[Tensor]],
        batch: Batch,
        head: Head | None,
    ) -> tuple[Tensor, Push]:
        """The outputs on one batch with their graph (with a `head`, what goes into it), and i -> J v_i."""
        s, space = self.snapshot, self.domain
        if self.route == "reverse":
            y = s.forward(blocks, batch, head)
            u = torch.zeros_like(y).requires_grad_()
            found = grads(y, leaves, [u], create_graph=True)
            prove_adjoint(self.name, s, batch, y, leaves, u, found)
            # where nothing depends on u there are only zeros, as large as the parameter
            reached = [j for j, t in enumerate(found) if t.requires_grad]
            transposed = [found[j] for j in reached]
            return y, lambda i: grads(transposed, [u], [vectors[i][j] for j in reached], retain_graph=True)[0]
        if head is not None:  # where memory is short, the graph of the tangents is worth a forward pass
            pushed = [primal_and_tangent(s, space, blocks, v, batch, head, self.name)[1] for v in vectors]
            y = s.forward(blocks, batch, head)
            if batch.index == 0:
                refuse_padded_embedding(y, self.name)
            return y, pushed.__getitem__
        # a checkpoint would run again outside of the level, without tangents
        with forward_only(self.name, s.functions), refused_hooks(_CHECKPOINTED.format(self.name)), dual_numbers():
            duals = map(forward_ad.make_dual, leaves, vectors[0])
            outputs = s.forward({**blocks, **dict(zip(space.names, duals, strict=True))}, batch)
            # the graph of the tangents goes with them: left in place it would be differentiated too
            y, first = forward_ad.unpack_dual(outputs)
            first = torch.zeros_like(y) if first is None else first.detach()
        if batch.index == 0:
            refuse_padded_embedding(y, self.name)

        def pushed_forward(i: int) -> Tensor:
            return primal_and_tangent(s, space, blocks, vectors[i], batch, what=self.name)[1]

        return y, lambda i: first if i == 0 else pushed_forward(i)


def _place(
    name: str,
    objective: Objective,
    x: Tensor | Mapping[str, Tensor] | None,
    restrict: str | list[str] | None,
    route: Route | None,
) -> tuple[Snapshot, Space, Way]:
    """The moment, the blocks and the route of an operator."""
    snapshot = objective.snapshot(x, pieces=True)
    space = snapshot.space if restrict is None else snapshot.space.restrict(restrict)
    return snapshot, space, Way(chosen(route, snapshot.model, name, gauss_newton=True), route is not None)


def _require_objective(name: str, objective: object) -> None:
    if not isinstance(objective, Objective):
        raise TypeError(f"{name}: objective must be an Objective, got {type(objective).__name__}")


def _signed(objective: Objective) -> frozenset[Fact]:
    return PSD if all(p.weight >= 0 for p in objective.parts) else SYMMETRIC


def gauss_newton(
    objective: Objective,
    *,
    x: Tensor | Mapping[str, Tensor] | None = None,
    restrict: str | list[str] | None = None,
    route: Route | None = None,
) -> LinearOperator:
    """Return the (generalized) Gauss-Newton operator sum_j w_j / count_j J' H_j J.

    J is the Jacobian of the outputs in the parameters, and H_j the criterion's Hessian in the outputs. The operator is
    positive semidefinite where every criterion is convex and every weight non-negative. Penalties that are declared
    convex are included with their Hessian, others are not.

    Args:
        objective: the objective.
        x: the point ``(n,)``, or a dict of tensors. Default: the model's present parameters.
        restrict: a glob pattern, or several, of the parameters that vary. Default: all trainable ones.
        route: ``"forward"`` or ``"reverse"``. Default: the faster one for the model; `A.route` says which was taken.

    Example:
        >>> import torch
        >>> from frechet import Objective, gauss_newton, squared_error
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> X = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> gauss_newton(Objective(model, squared_error(), [(X, torch.zeros(2, 1))])).dense()  # 2 X'X / 2
        tensor([[1., 0.],
                [0., 4.]])
    """
    _require_objective("gauss_newton", objective)
    convex = all(p.criterion.convex for p in objective.parts)
    penalized = any(w < 0 for w, p in objective.penalties if p.convex)
    facts = _signed(objective) if convex and not penalized else SYMMETRIC

    def middle() -> OnBatch:
        return lambda _part, criterion, y, targets: lambda u: criterion.hessian_product(y, targets, u)

    snapshot, space, way = _place("gauss_newton", objective, x, restrict, route)
    return OutputProduct(
        name="gauss_newton",
        snapshot=snapshot,
        domain=space,
        facts=facts,
        penalties="convex",
        way=way,
        middle=middle,
        of_criterion=AtOutputs.product,
    )


def fisher(
    objective: Objective,
    *,
    seed: int | None = None,
    samples: int = 1,
    x: Tensor | Mapping[str, Tensor] | None = None,
    restrict: str | list[str] | None = None,
    route: Route | None = None,
) -> LinearOperator:
    """Return the Fisher information: 1/count sum over terms of E[s s'], s the score of the model's own distribution.

    Penalties (priors) are left out. Label smoothing and class weights raise: they are no likelihood.

    Args:
        objective: the objective. Its criterion must be a likelihood.
        seed: the seed of labels drawn from the likelihood, the same labels at every product. In a group every rank
            draws its own, so another split of the data gives another matrix. Default: the exact Fisher; nothing is
            drawn.
        samples: how many sets of labels are drawn.
        x: the point ``(n,)``, or a dict of tensors. Default: the model's present parameters.
        restrict: a glob pattern, or several, of the parameters that vary. Default: all trainable ones.
        route: as in `gauss_newton`.

    Example:
        >>> import torch
        >>> from frechet import Objective, fisher, squared_error
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> data = [(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))]
        >>> fisher(Objective(model, squared_error(), data)).dense()  # 2 mean x^2
        tensor([[5.]])
    """
    _require_objective("fisher", objective)
    if samples < 1 or (seed is None and samples > 1):
        raise ValueError(f"fisher: samples must be at least 1, and 1 without a seed, got {samples} with seed={seed}")
    for part in objective.parts:
        part.criterion.require_likelihood()
    if seed is not None:
        generator(seed)  # refuses a bad seed here, and not at the first product

    def exact() -> OnBatch:
        return lambda _part, criterion, y, targets: lambda u: criterion.fisher_product(y, targets, u)

    def drawn() -> OnBatch:
        assert seed is not None
        rank = () if objective.group is None else (objective.group.rank,)
        streams = {
            id(part): [generator(seed, j, i, *rank) for i in range(samples)] for j, part in enumerate(objective.parts)
        }

        def on_batch(part: Part, criterion: Criterion, y: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
            labels = [criterion.sample(y, targets, g) for g in streams[id(part)]]
            scores = [criterion.score(y, t) for t in labels]
            return lambda u: torch.stack([criterion.project(s, u) for s in scores]).mean(0)

        return on_batch

    snapshot, space, way = _place("fisher", objective, x, restrict, route)
    return OutputProduct(
        name="fisher",
        snapshot=snapshot,
        domain=space,
        facts=_signed(objective),
        drawn=seed is not None,
        way=way,
        middle=exact if seed is None else drawn,
    )


def empirical_fisher(
    objective: Objective,
    *,
    per: Literal["example", "term"],
    x: Tensor | Mapping[str, Tensor] | None = None,
    restrict: str | list[str] | None = None,
    route: Route | None = None,
) -> LinearOperator:
    """Return the uncentered second moment of gradients on the actual targets.

    Penalties are left out. The model must treat the examples of a batch independently: one that normalizes by the
    statistics of the batch is refused. A factor c on the objective is c^2 on this matrix.

    Args:
        objective: the objective.
        per: ``"term"`` is 1/count sum over terms of g g'. ``"example"`` is 1/N sum over examples of g g', where g is
            the gradient of the example's total times N/count, so that the mean of g is the objective's gradient. Both
            agree where every example has one term.
        x: the point ``(n,)``, or a dict of tensors. Default: the model's present parameters.
        restrict: a glob pattern, or several, of the parameters that vary. Default: all trainable ones.
        route: as in `gauss_newton`.

    Example:
        >>> import torch
        >>> from frechet import Objective, empirical_fisher, squared_error
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [-1.0]]))]  # g = -2, 4
        >>> empirical_fisher(Objective(model, squared_error(), data), per="example").dense()
        tensor([[10.]])
    """
    _require_objective("empirical_fisher", objective)
    if per not in ("example", "term"):
        raise ValueError(f"empirical_fisher: per must be 'example' or 'term', got {per!r}")

    def middle() -> OnBatch:
        def on_batch(_part: Part, criterion: Criterion, y: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
            check_additive("empirical_fisher", criterion, y, targets, objective.space.eps, 0)
            score = criterion.score(y, targets)
            if per == "term":
                return lambda u: criterion.project(score, u)
            flat = score.flatten(1) if score.ndim > 1 else score[:, None]
            return lambda u: (flat * (flat * u.reshape(flat.shape)).sum(1, keepdim=True)).view(score.shape)

        return on_batch

    def per_example(count: float, examples: int) -> float:
        return examples / count**2

    coupled = per == "example"
    snapshot, space, way = _place("empirical_fisher", objective, x, restrict, route)
    snapshot.refuse_coupled("empirical_fisher")
    return OutputProduct(
        name="empirical_fisher",
        snapshot=snapshot,
        domain=space,
        facts=PSD,
        scale=per_example if coupled else None,
        squared=True,
        way=way,
        middle=middle,
        coupled=coupled,
        of_criterion=AtOutputs.second_moment if coupled else AtOutputs.second_moment_by_term,
    )
