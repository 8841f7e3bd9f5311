import pytest
import torch

from frechet.linalg._density import spectral_density
from frechet.linalg._eigsh import eigsh
from frechet.operators._constructors import from_callable, from_diagonal, from_matrix
from frechet.report import _lockstep as lockstep
from frechet.space import Space


def operator(n=60, seed=0):
    torch.manual_seed(seed)
    M = torch.randn(n, n, dtype=torch.float64)
    return from_matrix(M + M.T, facts="symmetric")


def watched(calls):
    def observe(state):
        calls.append(state)
        return False

    return observe


@pytest.mark.parametrize("together", [1, 2, 5, 8])
@pytest.mark.parametrize("deflated", [0, 3])
def test_the_density_is_that_of_one_probe_after_the_other(together, deflated):
    A = operator()
    known = eigsh(A, deflated, seed=0, rtol=1e-10) if deflated else None
    expected = spectral_density(A, seed=1, probes=5, steps=9, deflate=known)
    found = lockstep.density(
        A, seed=1, probes=5, steps=9, together=together, deflate=known, observe=lambda _: False, resume=None
    )
    torch.testing.assert_close(found.alpha, expected.alpha, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.beta, expected.beta, rtol=1e-9, atol=1e-9)
    assert (found.lengths, found.products) == (expected.lengths, expected.products)
    assert float(found.trace_of(lambda t: t)) == pytest.approx(float(expected.trace_of(lambda t: t)), rel=1e-9)


def test_probes_of_one_group_are_one_pass_a_step():
    blocks = []
    A = operator()
    counted = from_callable(lambda V: blocks.append(V.shape[1]) or A @ V, A.domain, facts="symmetric")
    lockstep.density(counted, seed=0, probes=8, steps=5, together=8, deflate=None, observe=lambda _: False, resume=None)
    assert blocks == [8] * 5


def test_krylov_spaces_that_end_leave_the_block():
    A = from_diagonal(torch.cat([torch.ones(20), 2 * torch.ones(20)]).double())
    found = lockstep.density(
        A, seed=0, probes=3, steps=10, together=3, deflate=None, observe=lambda _: False, resume=None
    )
    assert found.lengths == (2, 2, 2)
    assert found.products == 6


def test_a_stopped_density_goes_on_after_its_finished_probes():
    A, states = operator(), []

    def stops(state):
        states.append(state)
        return len(states) == 12

    cut = lockstep.density(A, seed=0, probes=6, steps=5, together=2, deflate=None, observe=stops, resume=None)
    assert len(cut.lengths) == 4  # two groups of five steps are finished
    whole = lockstep.density(
        A, seed=0, probes=6, steps=5, together=2, deflate=None, observe=lambda _: False, resume=states[-1]
    )
    expected = spectral_density(A, seed=0, probes=6, steps=5)
    torch.testing.assert_close(whole.alpha, expected.alpha, rtol=1e-9, atol=1e-9)


def test_a_density_stopped_in_its_first_group_is_coarser_and_not_nothing():
    A, states = operator(), []
    found = lockstep.density(
        A, seed=0, probes=6, steps=9, together=6, deflate=None, observe=lambda s: states.append(s) or len(states) == 4,
        resume=None,
    )  # fmt: skip
    assert found.lengths == (4,) * 6


def layered():
    torch.manual_seed(0)
    space = Space(("a.weight", "a.bias", "b.weight", "c"), ((4, 3), (4,), (30,), ()), torch.float64)
    M = torch.randn(space.dim, space.dim, dtype=torch.float64)
    return space, M + M.T


@pytest.mark.parametrize("together", [1, 2, 8])
def test_tops_are_those_of_the_diagonal_blocks(together):
    space, M = layered()
    A = from_callable(lambda V: M @ V, space, facts="symmetric")
    assert lockstep.modules_of(space) == {"a": ("a.weight", "a.bias"), "b": ("b.weight",), "(root)": ("c",)}
    found = lockstep.tops(
        A, ["b", "a", "(root)"], seed=0, steps=40, together=together, rtol=1e-6, observe=lambda _: False
    )
    rows = {"a": slice(0, 16), "b": slice(16, 46), "(root)": slice(46, 47)}
    for name, place in rows.items():
        truth = float(torch.linalg.eigvalsh(M[place, place])[-1])
        assert abs(found[name].value - truth) <= found[name].residual + 1e-9
        assert found[name].converged
        assert found[name].residual <= 1e-6 * abs(truth) + 1e-9


def test_tops_that_were_found_are_not_computed_again_and_a_stop_keeps_what_there_is():
    space, M = layered()
    products = []
    A = from_callable(lambda V: products.append(V.shape[1]) or M @ V, space, facts="symmetric")
    first = lockstep.tops(A, ["a", "b"], seed=0, steps=3, together=8, rtol=1e-9, observe=lambda _: True)
    assert set(first) == {"a", "b"}
    assert not first["a"].converged
    made = len(products)
    again = lockstep.tops(A, ["a", "b"], seed=0, steps=3, together=8, rtol=1e-9, observe=lambda _: False, found=first)
    assert again == first
    assert len(products) == made
