import math

import pytest
import torch

from frechet.linalg._eigsh import eigsh
from frechet.operators._constructors import from_callable
from frechet.report._sizes import probes_for, relative_error, sizes, widths
from frechet.report._spectra import probes_wanted
from frechet.space import Space

SPACE = Space(("a.weight", "a.bias", "b"), ((20,), (4,), (36,)), torch.float64)
ROWS = {"a": slice(0, 24), "(root)": slice(24, 60)}


def matrix(kind, seed=0):
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=g))[0]
    values = {
        "psd": torch.logspace(1, -3, 60, dtype=torch.float64),
        "indefinite": torch.linspace(-3, 5, 60, dtype=torch.float64),
        "rank one": torch.cat([torch.ones(1), torch.zeros(59)]).double(),
        "one outlier": torch.cat([torch.tensor([100.0]), torch.randn(59, generator=g)]).double(),
        "few": torch.cat([torch.tensor([9.0, 4.0, -3.0]), 0.01 * torch.ones(57)]).double(),
    }[kind]
    return Q @ (values[:, None] * Q.T)


def operator(M, facts="symmetric", blocks=None):
    return from_callable(lambda V: (None if blocks is None else blocks.append(V.shape[1])) or M @ V, SPACE, facts=facts)


def measured(A, probes, known=None, before=None, exact=False, seed=0, observe=lambda _: False):
    def count(now):
        return probes - (0 if now is None else now.probes)

    return sizes(A, count, known=known, seed=seed, block=8, exact=exact, observe=observe, before=before)


@pytest.mark.parametrize("kind", ["psd", "indefinite", "rank one", "one outlier", "few"])
def test_unit_vectors_give_all_numbers_exactly(kind):
    M = matrix(kind)
    found = measured(operator(M), 60, exact=True)
    assert float(found.trace) == pytest.approx(float(M.trace()), abs=1e-12)
    assert float(found.frobenius) == pytest.approx(float(M.norm()), rel=1e-12)
    for name, draws in found.modules().items():
        assert float(found.of(draws)) == pytest.approx(float(M[ROWS[name], ROWS[name]].trace()), abs=1e-12)


@pytest.mark.parametrize("deflated", [0, 4])
@pytest.mark.parametrize("kind", ["psd", "indefinite", "rank one", "one outlier", "few"])
def test_intervals_cover_with_and_without_what_is_known(kind, deflated):
    """Of 200 seeds a 95 % interval misses at most 20 with probability 0.998."""
    M = matrix(kind)
    known = eigsh(operator(M), deflated, seed=1, rtol=1e-3) if deflated else None
    missed = dict.fromkeys(("trace", "frobenius", *ROWS), 0)
    for seed in range(200):
        found = measured(operator(M), 24, known=known, seed=seed)
        told = {"trace": found.trace, "frobenius": found.frobenius}
        told |= {name: found.of(draws) for name, draws in found.modules().items()}
        truth = {"trace": M.trace(), "frobenius": M.norm(), **{n: M[r, r].trace() for n, r in ROWS.items()}}
        for name, estimate in told.items():
            low, high = estimate.interval()
            slack = 1e-9 * float(truth["frobenius"])
            missed[name] += not (low - slack <= truth[name] <= high + slack)
    assert max(missed.values()) <= 20, missed


def test_the_number_of_probes_that_a_pilot_asks_for_does_not_spoil_the_coverage():
    M = matrix("one outlier")
    missed = 0
    for seed in range(200):

        def count(now):
            if now is None:
                return 16
            return min(96, math.ceil(probes_for(now, 0.3, relative_error(now.trace)))) - now.probes

        found = sizes(
            operator(M), count, known=None, seed=seed, block=8, exact=False, observe=lambda _: False, before=None
        )
        low, high = found.trace.interval()
        missed += not (low <= M.trace() <= high)
    assert missed <= 20


def test_what_is_known_narrows_the_intervals_whatever_its_quality():
    M = matrix("few")
    rough = eigsh(operator(M), 3, which="both", seed=0, rtol=0.5, max_products=6)
    plain, better = measured(operator(M), 24), measured(operator(M), 24, known=rough)
    assert relative_error(better.trace) < 0.3 * relative_error(plain.trace)
    assert relative_error(better.frobenius) < 0.3 * relative_error(plain.frobenius)


def test_probes_go_in_blocks_and_add_up_to_what_one_run_gives():
    M, blocks = matrix("psd"), []
    A = operator(M, blocks=blocks)
    first = measured(A, 12)
    assert blocks == [8, 4]
    later, whole = measured(A, 20, before=first), measured(A, 20)
    torch.testing.assert_close(later.draws, whole.draws)
    torch.testing.assert_close(later.squares, whole.squares)
    cut = measured(A, 20, observe=lambda now: now.probes >= 8)
    assert cut.probes == 8


def test_shares_add_up_and_there_are_none_where_parts_are_negative():
    found = measured(operator(matrix("psd"), facts="positive_semidefinite"), 40)
    shares = [found.share(draws) for draws in found.modules().values()]
    assert sum(s[0] for s in shares) == pytest.approx(1.0)
    assert all(0 <= low <= s <= high for s, low, high in shares)
    M = torch.diag(torch.cat([torch.ones(24), -torch.ones(36)])).double()
    for exact in (False, True):
        mixed = measured(operator(M), 24, exact=exact)
        assert all(mixed.share(draws)[1:] == (-math.inf, math.inf) for draws in mixed.modules().values())
        assert set(widths(mixed)) == {"trace", "Frobenius norm"}


def test_a_product_that_is_not_finite_is_told():
    from frechet.errors import NonFinite

    with pytest.raises(NonFinite, match="trace: product 1 or one after it"):
        measured(operator(torch.full((60, 60), math.nan, dtype=torch.float64)), 4)


def test_products_for_trace_and_norm_are_told_where_shares_have_no_interval():
    M = 2 * torch.eye(60, dtype=torch.float64) + matrix("one outlier")
    noisy = next(
        now
        for now in (measured(operator(M, facts="positive_semidefinite"), 2, seed=seed) for seed in range(40))
        if any(math.isinf(w) for w in widths(now).values()) and relative_error(now.trace) < math.inf
    )
    assert probes_wanted("Gauss-Newton", noisy) == 1e9
    assert noisy.probes < probes_wanted("Gauss-Newton", noisy, 0.15, whole=True) < 1e9
