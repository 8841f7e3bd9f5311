import numpy as np
import pytest

from frechet.optimize._sparse.coloring import colored, meetings


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "width"), [(1, 1), (7, 2), (30, 3), (12, 5)])
def test_what_meets_has_different_colors(count, width, seed):
    reads = np.random.default_rng(seed).integers(-1, count, (20, width))
    graph = meetings([reads], count)
    colors = colored(graph)
    for row in reads:
        met = np.unique(row[row >= 0])
        assert len(np.unique(colors[met])) == len(met)
    assert colors.min() == 0
    assert colors.max() <= int(np.diff(graph.indptr).max())


def test_a_chain_needs_two_colors_and_a_band_as_many_as_it_is_wide():
    chain = np.stack([np.arange(50), np.arange(1, 51)], 1)
    assert colored(meetings([chain], 51)).max() + 1 <= 3
    band = np.stack([np.arange(50) + k for k in range(4)], 1)
    assert colored(meetings([band], 53)).max() + 1 <= 6


def test_edges_of_several_arrays_count_and_a_vertex_does_not_meet_itself():
    graph = meetings([np.array([[0, 1]]), np.array([[1, 2], [2, 2], [-1, 0]])], 4)
    assert sorted(map(tuple, np.argwhere(graph.toarray()))) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert colored(graph)[3] == 0
    assert meetings([], 3).nnz == 0
