"""The empirical Fisher as what it is: the sum of the outer products of its examples' gradients.

    E = sum_i f_i g_i g_i' = U U',    U = [sqrt(f_1) g_1, sqrt(f_2) g_2, ...]  (n, N)

Its products never form U. A closed-form inverse of E + c I needs it: with U it is a matter of N x N matrices (Woodbury,
see `closed_form`). Where the examples outnumber the parameters, the matrix E itself is smaller and is taken instead.

**Source.** S.-I. Amari, H. Park and K. Fukumizu (2000), Adaptive method of realizing natural gradient learning, doi
10.1162/089976600300015420; E. Frantar, E. Kurtic and D. Alistarh (2021), M-FAC, arXiv 2107.03356 (the inverse of such a
sum by its gradients).

**Cost.** One forward and one backward pass for each example, one product with E, which is compared with U U', and N n
or n^2 numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frechet.objective import Batch, Part
from frechet.operators._operator import PSD, LinearOperator, Scaled, Sum
from frechet.operators._structured import Diagonal, Identity, LowRank, Matrix
from frechet.operators.derivatives._gauss_newton import OutputProduct
from frechet.operators.derivatives._products import differentiating, grads


def by_examples(A: LinearOperator) -> LinearOperator:
    """The same map with each empirical Fisher in a sum or a scaling as a structured operator; `A` where there is none.

    One that is spread over processes stays as it is, and so does one of terms where an example has several. A sum with
    other terms than these has no closed form anyway, and stays, too.
    """
    match A:
        case Scaled(c, operator):
            found = by_examples(operator)
            return A if found is operator else c * found
        case Sum(terms) if any(_is_fisher(t) for t in terms) and all(_is_fisher(t) or _is_simple(t) for t in terms):
            return Sum(tuple(by_examples(t) for t in terms))
        case OutputProduct() if _is_fisher(A):
            return _structured(A)
        case _:
            return A


def _is_fisher(A: LinearOperator) -> bool:
    A = A.operator if isinstance(A, Scaled) else A
    return isinstance(A, OutputProduct) and A.name == "empirical_fisher"


def _is_simple(A: LinearOperator) -> bool:
    A = A.operator if isinstance(A, Scaled) else A
    return isinstance(A, Identity | Diagonal | LowRank | Matrix)


def _structured(E: OutputProduct) -> LinearOperator:
    space = E.domain
    if E.snapshot.group is not None or space.shard is not None or not space.dim:
        return E
    U = _factors(E)
    v = space.random(0, 0)
    found, wanted = U @ (U.T @ v), E @ v
    # terms of one example do not add up to its gradient: then these are not the factors
    if not float(space.norm(found - wanted)) <= math.sqrt(space.eps) * float(space.norm(wanted)):
        return E
    if U.shape[1] < space.dim:
        return LowRank(U, U.new_ones(U.shape[1]), space, PSD)
    return Matrix(U @ U.T, space, space, PSD)


def _factors(E: OutputProduct) -> Tensor:
    """U ``(n, N)``, one pass over the data."""
    s, space = E.snapshot, E.domain
    gradients: dict[int, list[Tensor]] = {id(part): [] for part in s.parts}
    counts = {id(part): 0.0 for part in s.parts}

    with differentiating(E.name, space.device):
        leaves, blocks = s.leaves(space)

        def visit(part: Part, batch: Batch) -> None:
            with torch.enable_grad():
                terms = s.terms(part, blocks, batch)
                counts[id(part)] += float(s.count(part, batch))
                for i in range(len(terms)):
                    one = torch.zeros_like(terms)
                    one[i] = 1.0
                    found = grads(terms, leaves, [one], retain_graph=i + 1 < len(terms))
                    gradients[id(part)].append(space.join([g.detach() for g in found]))

        with s.installed(blocks):
            s.sweep(visit)
    columns = []
    for part in s.parts:
        number, examples = counts[id(part)], len(gradients[id(part)])
        factor = 1 / number if E.scale is None else E.scale(number, examples)
        columns += [part.weight * math.sqrt(factor) * g for g in gradients[id(part)]]
    return torch.stack(columns).T
