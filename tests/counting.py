"""An operator that counts its products, and the largest tensor made, for testing what algorithms claim to cost."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from frechet.operators._operator import LinearOperator
from frechet.operators._structured import FromCallable


class Count:
    products = 0
    transposed = 0

    @property
    def total(self):
        return self.products + self.transposed


def counting(A: LinearOperator):
    """`A` again, and a counter of its products with A and with A' (one per column)."""
    count = Count()

    def matmat(V):
        count.products += V.shape[1]
        return A @ V

    def rmatmat(U):
        count.transposed += U.shape[1]
        return A.T @ U

    return FromCallable(matmat, rmatmat, A.domain, A.codomain, A.facts), count


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation inside returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(found) if isinstance(t, Tensor)]
        self.entries = max([self.entries, *sizes])
        return found
