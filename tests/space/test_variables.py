import pytest
import torch

from frechet.space import Space, Variables, like, named

T = torch.arange(6.0, dtype=torch.float64)
POINTS = [T, T[0], T.view(2, 3), T[:0], {"a": T.view(3, 2)}, {"b": T[:2], "a": T[2], "": T[3:].view(1, 3)}]


@pytest.mark.parametrize("x", POINTS, ids=str)
def test_a_point_goes_to_a_vector_and_back(x):
    variables = Variables.of(x)
    assert variables == Variables(Space.of(named(x)), isinstance(x, torch.Tensor))
    v = variables.flatten(x)
    assert v.shape == (variables.space.dim,)
    for y in (variables.unflatten(v), variables.structured(list(named(x).values()))):
        assert type(y) is type(x)
        assert list(named(y)) == list(named(x))
        assert all(torch.equal(a, b) for a, b in zip(named(y).values(), named(x).values(), strict=True))


@pytest.mark.parametrize("x", POINTS, ids=str)
def test_leaves_are_the_argument_of_a_new_graph(x):
    x = like(x, [b.clone().requires_grad_() * 1 for b in named(x).values()])
    leaves, argument = Variables.of(x).leaves(list(named(x).values()))
    assert all(a is b for a, b in zip(leaves, named(argument).values(), strict=True))
    assert all(leaf.is_leaf and leaf.requires_grad for leaf in leaves)


def test_views_of_a_vector_share_its_memory():
    x = {"a": T[:2], "b": T[2:]}
    v = T.clone()
    Variables.of(x).unflatten(v)["b"].zero_()
    assert v.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_blocks_must_be_as_many_as_the_variables():
    with pytest.raises(ValueError, match="zip"):
        Variables.of({"a": T, "b": T}).structured([T])
