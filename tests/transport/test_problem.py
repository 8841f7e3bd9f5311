import pytest
import torch

from frechet.errors import NonFinite
from frechet.transport._batch import sinkhorn_batch
from frechet.transport._cardinality import sparse_transport
from frechet.transport._problem import balanced, checked, reduced
from frechet.transport._sinkhorn import sinkhorn
from transport_problems import F64, INF, problem

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch's own forward mode


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cost": [[1.0]]}, TypeError, "f: cost must be a tensor, got list"),
        ({"cost": torch.ones(3)}, ValueError, r"f: cost must have shape \(n, m\) with n, m >= 1, got \(3,\)"),
        ({"cost": torch.ones(0, 2)}, ValueError, r"f: cost must have shape \(n, m\) with n, m >= 1, got \(0, 2\)"),
        ({"cost": torch.ones(2, 2, dtype=torch.long)}, TypeError, "f: cost must be of a floating-point type"),
        ({"epsilon": 0.0}, ValueError, "f: epsilon must be a number > 0, got 0.0"),
        ({"epsilon": INF}, ValueError, "f: epsilon must be a number > 0, got inf"),
        ({"a": [1.0]}, TypeError, "f: a must be a tensor, got list"),
        ({"a": torch.ones(3)}, ValueError, r"f: a must have shape \(8,\) for a cost \(8, 6\), got \(3,\)"),
        ({"b": torch.ones(6)}, TypeError, "f: b must be torch.float64 on cpu as cost is, got torch.float32 on cpu"),
        ({"b": -torch.ones(6, dtype=F64)}, ValueError, "f: b must be finite and >= 0, got -1 to -1"),
        ({"a": torch.full((8,), INF, dtype=F64)}, ValueError, "f: a must be finite and >= 0, got inf to inf"),
        ({"b": torch.ones(6, dtype=F64)}, ValueError, "f: a and b must have the same sum, got 1 and 6; divide each"),
        (
            {"a": torch.zeros(8, dtype=F64), "b": torch.zeros(6, dtype=F64)},
            ValueError,
            "f: a must have a positive sum, got 0",
        ),
        ({"cost": torch.ones(8, 6, dtype=F64, requires_grad=True)}, ValueError, "f: cost must not require grad: the"),
    ],
)
def test_wrong_arguments(change, error, message):
    cost, a, b = problem()
    arguments = {"cost": cost, "a": a, "b": b, "epsilon": 0.1} | change
    with pytest.raises(error, match=message):
        checked("f", arguments["cost"], arguments["a"], arguments["b"], arguments["epsilon"])


@pytest.mark.parametrize("bad", [float("nan"), -INF])
def test_a_cost_that_is_no_number_is_named(bad):
    cost, a, b = problem()
    cost[2, 3] = bad
    with pytest.raises(NonFinite, match=rf"f: cost must be finite, or inf .*, got {bad} at \(2, 3\)"):
        checked("f", cost, a, b, 0.1)


def test_sums_that_differ_by_rounding_are_made_equal():
    cost, a, b = problem()
    given = checked("f", cost, a, b * (1 + 1e-9), 0.1)
    assert float(given.b.sum()) == pytest.approx(1, abs=1e-15)


def test_the_gauge_is_fixed_in_each_component():
    cost = torch.full((4, 4), INF, dtype=F64)
    cost[:2, :2], cost[2:, 2:] = 1.0, 2.0
    found = reduced(checked("f", cost, None, None, 0.1))
    f, g = balanced(found, torch.arange(4.0, dtype=F64), torch.ones(4, dtype=F64))
    assert f[:2].sum() == g[:2].sum()
    assert f[2:].sum() == g[2:].sum()
    assert torch.equal(f[:2].unsqueeze(1) + g[:2], torch.tensor([[1.0, 1], [2, 2]], dtype=F64))
    assert torch.equal(found.T.T.cost, found.cost)


PLAIN = {
    "sinkhorn": lambda c, a: sinkhorn(c, a, epsilon=0.1).f,
    "sinkhorn_batch": lambda c, a: sinkhorn_batch(c.unsqueeze(0), a.unsqueeze(0), epsilon=0.1).f,
    "sparse_transport": lambda c, a: sparse_transport(c, a, cardinality=2, gamma=1.0).plan,
}


@pytest.mark.parametrize("which", [0, 1], ids=["cost", "a"])
@pytest.mark.parametrize("name", PLAIN)
def test_results_without_a_graph_are_refused_where_a_derivative_is_wanted(name, which):
    inputs = [torch.ones(3, 4, dtype=F64), torch.full((3,), 1 / 3, dtype=F64)]

    def f(x):
        return PLAIN[name](*[x if i == which else y for i, y in enumerate(inputs)])

    x, cause = inputs[which], f"{name}: {('cost', 'a')[which]} must not "
    refused = {
        "require grad": lambda: torch.func.jacrev(f)(x),
        "be a dual number": lambda: torch.func.jvp(f, (x,), (x,)),
        "be under vmap": lambda: torch.func.vmap(f)(x.unsqueeze(0)),
    }
    for why, run in refused.items():
        with pytest.raises(ValueError, match=f"{cause}{why}: the result carries no graph; use transport_value or"):
            run()
