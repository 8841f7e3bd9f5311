import pytest
import torch
from scipy import sparse

from frechet.optimize._sparse.structure import structured
from frechet.space import Space
from sparse_problems import PROBLEMS, structure_of
from spectra import F64


def dense_pattern(structure):
    found = torch.zeros(structure.m, structure.n, dtype=torch.bool)
    for group in structure.groups:
        for rows, columns in zip(group.rows, group.columns, strict=True):
            for j in columns[columns >= 0]:
                found[rows, j] = True
    return found


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_pattern_covers_the_jacobian_and_columns_of_a_color_never_meet(name):
    problem = PROBLEMS[name]()
    s = structure_of(problem)
    pattern = dense_pattern(s)
    names = [] if isinstance(problem.x0, torch.Tensor) else list(problem.x0)
    x0 = problem.x0 if not names else tuple(problem.x0.values())
    flat = (
        (lambda *x: torch.cat([y.reshape(-1) for y in outputs(problem.residual(dict(zip(names, x, strict=True))))]))
        if names
        else problem.residual
    )
    J = torch.autograd.functional.jacobian(flat, x0)
    J = torch.cat([part.reshape(s.m, -1) for part in (J if names else (J,))], 1)
    assert not bool((J != 0)[~pattern].any())
    for row in pattern:
        colors = s.colors[row]
        assert len(colors.unique()) == len(colors)
    assert int(s.colors.max()) < s.count
    assert s.nonzeros() == int(pattern.sum())


def outputs(y):
    return [y] if isinstance(y, torch.Tensor) else list(y.values())


def test_products_are_as_many_as_columns_that_one_residual_reads():
    assert structure_of(PROBLEMS["bundle"]()).count == 6 + 3
    assert structure_of(PROBLEMS["shared"]()).count == 2 + 1
    assert structure_of(PROBLEMS["independent"]()).count == 2
    # points and lines never meet, and share what the larger of them needs
    assert structure_of(PROBLEMS["two_kinds"]()).count == 3 + 3
    assert structure_of(PROBLEMS["tridiagonal"]()).count == 3


def test_the_largest_parameter_of_which_a_residual_reads_one_block_is_eliminated():
    def gone(name):
        s = structure_of(PROBLEMS[name]())
        return sorted({s.blocks[g.eliminated].name for g in s.groups if g.eliminated >= 0})

    assert gone("bundle") == ["points"]
    assert gone("shared") == ["curves"]
    assert gone("two_kinds") == ["lines", "points"]
    assert gone("independent") == [""]
    assert gone("poses") == []
    assert gone("tridiagonal") == []


@pytest.mark.parametrize("convert", [lambda p: p, torch.Tensor.to_sparse, sparse.csr_array, sparse.coo_matrix])
def test_patterns_of_all_kinds_are_one(convert):
    pattern = torch.rand(9, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    space, r = Space.of({"": torch.zeros(5, dtype=F64)}), torch.zeros(9, dtype=F64)
    assert torch.equal(dense_pattern(structured(convert(pattern), space, True, r)), pattern)


def test_explicit_zeros_of_a_sparse_pattern_are_declared():
    pattern = sparse.coo_array(([0.0, 1.0], ([0, 1], [1, 0])), shape=(2, 2))
    space, r = Space.of({"": torch.zeros(2, dtype=F64)}), torch.zeros(2, dtype=F64)
    assert dense_pattern(structured(pattern, space, True, r)).tolist() == [[False, True], [True, False]]


def test_a_block_that_a_group_reads_twice_is_declared_once():
    space, r = Space.of({"": torch.zeros(3, 2, dtype=F64)}), torch.zeros(2, 2, dtype=F64)
    s = structured(torch.tensor([[1, 1], [0, 2]]), space, True, r)
    assert s.groups[0].columns.tolist() == [[2, 3, -1, -1], [0, 1, 4, 5]]


X = {"a": torch.zeros(3, 2, dtype=F64), "b": torch.zeros((), dtype=F64)}
R = torch.zeros(4, 2, dtype=F64)


@pytest.mark.parametrize(
    ("declared", "error", "sentence"),
    [
        ({"c": torch.zeros(4, dtype=torch.int64)}, ValueError, "structure must name parameters of x0, got 'c'"),
        (
            {"a": torch.zeros(4)},
            TypeError,
            r"structure of 'a' must be 'all' or a tensor of integers .*, got torch.float32",
        ),
        ({"a": "some"}, TypeError, "structure of 'a' must be 'all' or a tensor of integers .*, got 'some'"),
        ({"a": torch.tensor(1)}, TypeError, "structure of 'a' must have one row for each group, got a single number"),
        ({"a": torch.tensor([0, 1, 2, 3])}, ValueError, "structure of 'a' must lie between 0 and 2, .* got 0 to 3"),
        ({"a": torch.tensor([0, -2, 0, 0])}, ValueError, "structure of 'a' must lie between 0 and 2, .* got -2 to 0"),
        ({"a": torch.tensor([0, 1, 2])}, ValueError, "structure must have one row for each group .* 3 rows for 8"),
        ({"b": torch.zeros(4, dtype=torch.int64)}, ValueError, "structure must be 'all' for the scalar 'b'"),
        ({"r": {"a": torch.zeros(4, dtype=torch.int64)}}, ValueError, "where the residual is one tensor"),
        (torch.zeros(4, dtype=torch.int64), TypeError, "structure must be a dict of index tensors by parameter"),
        (torch.ones(8, 6, dtype=torch.bool), ValueError, r"shape of the Jacobian \(8, 7\), got \(8, 6\)"),
        ("sparse", TypeError, "structure must be a dict of index tensors by parameter, .* got str"),
        (3, TypeError, "structure must be a dict of index tensors by parameter, .* got int"),
    ],
)
def test_wrong_declarations_are_refused(declared, error, sentence):
    with pytest.raises(error, match=sentence):
        structured(declared, Space.of(X), False, R)


def test_each_tensor_of_the_residual_and_each_parameter_must_agree():
    index = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"one dict for each tensor of the residual, \['r', 's'\], got \['r'\]"):
        structured({"r": {"a": index}}, Space.of(X), False, {"r": R, "s": R})
    two = {"a": torch.zeros(3, 2, dtype=F64), "b": torch.zeros(3, dtype=F64)}
    with pytest.raises(ValueError, match="as many rows for each parameter, got 4 and 2 for 'b'"):
        structured({"a": index, "b": index[:2]}, Space.of(two), False, R)


def test_empty_parts_read_nothing():
    empty = torch.zeros(0, dtype=torch.int64)
    s = structured(
        {"r": {"a": torch.tensor([0, 1, 2, 2])}, "s": {"a": empty}}, Space.of(X), False, {"r": R, "s": R[:0]}
    )
    assert (s.m, len(s.groups), s.count) == (8, 1, 2)
    nothing = structured({}, Space.of(X), False, R)
    assert (nothing.m, nothing.groups, nothing.count) == (8, (), 0)
