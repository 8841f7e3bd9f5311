"""An operator that counts its products, for testing what algorithms claim to cost."""

from frechet.operators.operator import LinearOperator
from frechet.operators.structured import FromCallable


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
