import torch
from torch import nn

from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.operators.derivatives import gauss_newton, hessian
from frechet.recording import linearize
from frechet.recording._replay import record
from laws import close
from objective_cases import randn
from recordings import played_back, same, vector

M, N = vector(4, 3, seed=5), vector(4, 3, seed=6)


def names(replay):
    return sorted(str(o).removeprefix("aten.") for o in replay.objects if isinstance(o, torch._ops.OpOverload))


def test_a_product_that_is_added_to_something_is_added_where_it_is_made():
    C = vector(4, 2, seed=7)
    for product in (
        lambda v: [C + M @ v[0]],
        lambda v: [M @ v[0] + C],
        lambda v: [C[0] + M @ v[0]],
        lambda v: [C[0].view(1, 2).expand(4, 2) + M @ v[0]],
    ):
        replay, found, expected = played_back(product, (3, 2))
        same(found, expected)
        assert (replay.steps, names(replay)) == (1, ["addmm.default"])
    replay, found, expected = played_back(lambda v: [C + M @ v[0] + N @ v[1]], (3, 2), (3, 2))
    same(found, expected)
    assert (replay.steps, names(replay)) == (2, ["addmm.default"])


def test_a_moving_row_is_repeated_by_the_product_itself():
    replay, found, expected = played_back(lambda v: [v[0].view(1, 2).expand(4, 2) + M @ v[1]], (2,), (3, 2))
    same(found, expected)
    assert (replay.steps, names(replay)) == (1, ["addmm.default"])


def test_sums_that_are_something_else_stay_as_they_are():
    three, single = vector(5, 4, 2, seed=7), vector(4, 2, seed=7).float()

    def twice(v):
        p = M @ v[0]
        return [p + 1 * p, p]

    def with_a_factor(v):
        return [torch.add(M @ v[0], M @ v[0], alpha=2)]

    def later_overwritten(v):
        p = M @ v[0]
        q = p + 1 * p
        p.mul_(3)
        return [q, p]

    for product in (
        *(twice, with_a_factor, later_overwritten),
        lambda v: [three + M @ v[0]],
        lambda v: [single + M @ v[0]],
        lambda v: [(M @ v[0]) + 1],
        lambda v: [torch.bmm(v[0].view(1, 3, 2), v[0].t().view(1, 2, 3)) + torch.ones(3, 3).double()],
    ):
        replay, found, expected = played_back(product, (3, 2))
        same(found, expected)
        assert "addmm.default" not in names(replay)


def test_transposes_are_added_before_they_are_transposed():
    replay, found, expected = played_back(lambda v: [((M @ v[0]).t() + (N @ v[0]).t()).t()], (3, 2))
    same(found, expected)
    assert (replay.steps, names(replay)) == (2, ["addmm.default", "mm.default"])

    def kept(v):
        t = (M @ v[0]).t()
        return [t + (N @ v[0]).t(), t]

    replay, found, expected = played_back(kept, (3, 2))
    same(found, expected)
    replay, found, expected = played_back(lambda v: [v[0].t() + v[1].t(), v[0].t().t()], (3, 2), (3, 2))
    same(found, expected)


def test_tangents_of_what_does_not_move_are_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    objective = Objective(model, squared_error(), [(randn(5, 3), randn(5, 2))])
    G = gauss_newton(objective)
    assert G.route == "forward"
    L = linearize(G, 0)
    close(L.dense(), G.dense())
    replay = L.budget.replays[0]
    assert "add.Tensor" not in names(replay)
    assert "zeros.default" not in names(replay.before)


def test_a_layer_of_a_hessian_is_three_products_forward_and_three_back():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    H = hessian(Objective(model, squared_error(), [(randn(5, 3), randn(5, 2))]))
    L = linearize(H, 0)
    close(L.dense(), H.dense())
    code = L.budget.replays[0].code
    o = [str(x) for x in L.budget.replays[0].objects]
    times = {name: code.count(f"o[{i}](") for i, name in enumerate(o)}
    # two tangents forward and two back, and two halves of each weight's; the inputs and their gradients do not move
    assert times["aten.mm.default"] + times["aten.addmm.default"] == 3 * 6 - 3 - 1
    before = L.budget.replays[0].before
    gradients_in_weights = [str(x) for x in before.objects].count("aten.mm.default")
    assert gradients_in_weights <= 1  # the operation is listed once; it makes the gradients in the activations only


def test_blocks_go_through():
    C = vector(4, 2, seed=7)
    replay = record(lambda v: [C + M @ v[0], v[1].view(1, 2).expand(4, 2) + M @ v[0]], [vector(3, 2), vector(2)])
    V = [vector(5, 3, 2, seed=2), vector(5, 2, seed=3)]
    together = replay.block(V)
    for i in range(5):
        same([t[i] for t in together], replay([b[i] for b in V]))


def test_layers_of_sequences_are_added_where_they_are_made():
    C, D = vector(2, 4, 2, seed=7), vector(8, 3, seed=8)

    def two_tangents(v):
        return [(D @ v[0]).view(2, 4, 2) + (D @ v[1]).view(2, 4, 2) + (D @ v[2]).view(2, 4, 2)]

    replay, found, expected = played_back(two_tangents, (3, 2), (3, 2), (3, 2))
    same(found, expected)
    assert names(replay) == ["addmm.default", "mm.default", "view.default"]
    assert replay.steps == 4

    def kept(v):
        p = (D @ v[0]).view(2, 4, 2)
        return [C.transpose(0, 1).contiguous().transpose(0, 1) + p, v[0].sum() + (D @ v[0]).view(2, 4, 2), p]

    replay, found, expected = played_back(kept, (3, 2))
    same(found, expected)
    other = [lambda v: [C + (D @ v[0]).view(2, 4, 2)], lambda v: [(D @ v[0]).view(2, 4, 2) + v[1].expand(2, 4, 2)]]
    for product in other:
        replay, found, expected = played_back(product, (3, 2), (2,))
        same(found, expected)
        assert "add.Tensor" not in names(replay)
    replay.block([vector(5, 3, 2, seed=2), vector(5, 2, seed=3)])
