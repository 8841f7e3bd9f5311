import pytest
import torch
from torch import nn

from counting import counting
from frechet.analyze._plan import plan
from frechet.linalg._eigsh import eigsh
from frechet.objective import Objective
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators import from_callable, from_matrix
from frechet.operators.derivatives import gauss_newton, hessian
from frechet.space import euclidean
from objective_cases import mlp, ragged, randn


def objective(examples=2000, width=300):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    data = [(torch.randn(examples, 100), torch.randn(examples, 1)) for _ in range(2)]
    return Objective(model, squared_error(), data)


def test_the_memory_of_a_product_is_seen_and_smaller_batches_are_proposed():
    f = objective()
    found = plan(hessian(f), sample=0)
    if found.product_bytes is None:
        pytest.skip("this system does not tell a process its high-water mark")
    activations = 2 * 2000 * 300 * 4
    assert activations < found.product_bytes < 30 * activations
    assert found.examples is None
    tight = plan(hessian(f), budget=found.product_bytes // 4)
    assert tight.examples is not None
    assert 100 <= tight.examples < 700
    assert "in_pieces" in str(tight)
    smaller = plan(hessian(f.in_pieces(tight.examples)), sample=0)
    assert smaller.product_bytes is not None
    assert smaller.product_bytes < 0.5 * found.product_bytes


def test_jobs_are_products_times_seconds():
    M = torch.eye(500)
    calls = []

    def product(V):
        calls.append(V.shape[1])
        return (V.T @ M).T

    A = from_callable(product, euclidean(500), facts="symmetric")
    found = plan(A, budget=10**9, k=3, products=60, probes=4, steps=10)
    assert calls == [1, 1, 2, 8, 1]  # the identity: Lanczos' method ends at once
    assert [job.products for job in found.jobs] == [3, 60, 40]
    assert found.jobs[0].seconds == pytest.approx(3 * found.product_seconds)
    assert found.jobs[2].vectors == 14
    assert found.kept_vectors <= 10**9 // 2000
    assert 1 <= found.vectors_at_once <= 256
    assert len(list(found.lines())) == 6


def test_a_basis_that_does_not_fit_is_said():
    A = from_callable(lambda V: 2 * V, euclidean(10**6), facts="symmetric")
    found = plan(A, budget=60 * 10**6)
    assert found.jobs[0].fits in (False, None)
    assert found.product_bytes is None or "does not fit" in str(found)


def test_it_says_where_a_basis_that_does_not_fit_should_live():
    n = 10**6
    A = from_callable(lambda V: 2 * V, euclidean(n, torch.float64), facts="symmetric")
    free = plan(A, budget=10**11)
    if free.product_bytes is None:
        pytest.skip("this system does not tell a process its high-water mark")
    assert [job.storage for job in free.jobs] == ["device", None, "device"]
    assert free.jobs[0].stored_bytes == free.jobs[0].bytes
    beside, vector = free.jobs[0].bytes - 50 * 8 * n, 8 * n
    for size, storage, loss in ((4, "float32", 2.0**-24), (2, "float16", 2.0**-11)):
        # peaks of a product differ by a vector or so from one measurement to the next
        found = plan(A, budget=beside + 50 * size * n + 4 * vector).jobs[0]
        assert found.fits is False
        assert (found.storage, found.roundoff) == (storage, loss)
        assert found.bytes - found.stored_bytes == 50 * (8 - size) * n
    text = str(plan(A, budget=beside + 50 * 2 * n + 4 * vector))
    assert "which does not fit; " in text
    assert "with storage='float16' (residuals of up to 0.0005 times the largest eigenvalue)" in text
    nowhere = plan(A, budget=vector).jobs[0]
    assert (nowhere.storage, nowhere.fits) == (None, False)


def test_an_operator_without_data_has_no_batches_to_cut():
    found = plan(from_matrix(torch.eye(50)), budget=1)
    assert found.examples is None
    assert found.vectors_at_once == 1


def test_bad_arguments_are_told():
    with pytest.raises(TypeError, match=r"plan: A must be an operator, got Objective; write plan\(hessian"):
        plan(objective(2, 2))
    with pytest.raises(ValueError, match="plan: A must be square on one space"):
        plan(from_matrix(torch.ones(2, 3)))
    with pytest.raises(ValueError, match="plan: budget must be a positive number of bytes, got -1"):
        plan(from_matrix(torch.eye(2)), budget=-1)


def test_gauss_newton_is_planned_too():
    f = Objective(mlp(nn.Tanh()), squared_error(), ragged(randn(5, 2), randn(5, 2)))
    assert plan(gauss_newton(f), budget=10**9).product_seconds > 0


class Words(nn.Module):
    """Hidden states by a small body, then a head over a large vocabulary."""

    def __init__(self, words, width=16):
        super().__init__()
        self.embedding, self.body = nn.Embedding(words, width), nn.Linear(width, width)
        self.lm_head = nn.Linear(width, words, bias=False)

    def forward(self, tokens):
        return self.lm_head(torch.tanh(self.body(self.embedding(tokens))))


def test_fewer_tokens_at_once_are_proposed_where_the_chunks_of_a_head_do_not_fit():
    torch.manual_seed(0)
    model, tokens = Words(20000), torch.randint(20000, (2, 256))

    def headed(**rows):
        return hessian(
            Objective(model, cross_entropy(), [(tokens, tokens)], head="lm_head", **{"head_rows": 512, **rows})
        )

    found = plan(headed(), sample=0)
    if found.product_bytes is None:
        pytest.skip("this system does not tell a process its high-water mark")
    assert found.head_rows is None
    budget = found.product_bytes // 2
    tight = plan(headed(), budget=budget)
    assert tight.head_rows is not None
    assert 32 <= tight.head_rows < 512
    assert f"head_rows={tight.head_rows})" in str(tight)
    fitting = plan(headed(head_rows=tight.head_rows), sample=0)
    assert fitting.product_bytes is not None
    assert fitting.product_bytes <= 1.5 * budget  # what a product takes varies with what the allocator kept


def test_a_budget_below_the_body_asks_for_smaller_batches_too():
    torch.manual_seed(0)
    model, tokens = Words(500, width=64), torch.randint(500, (16, 128))
    H = hessian(Objective(model, cross_entropy(), [(tokens, tokens)], head="lm_head"))
    found = plan(H, sample=0)
    if found.product_bytes is None:
        pytest.skip("this system does not tell a process its high-water mark")
    tight = plan(H, budget=found.product_bytes // 20)
    assert tight.head_rows == 1
    assert tight.examples is not None
    assert tight.examples < 8


N = 1200
SPECTRA = {
    "five stand out": lambda: torch.cat([10 / torch.arange(1.0, 6) + 0.3, torch.linspace(0, 0.3, N) ** 2]),
    "twenty stand out": lambda: torch.cat([10 / torch.arange(1.0, 21) ** 2 + 0.3, torch.linspace(0, 0.3, N) ** 2]),
    "one over i": lambda: 1 / torch.arange(1.0, N),
    "a slow power": lambda: torch.arange(1.0, N) ** -0.25,
    "uniform": lambda: torch.linspace(0, 1, N),
    "geometric": lambda: 0.97 ** torch.arange(float(N)),
    "both signs": lambda: torch.cat([torch.linspace(-1, 0.2, N), 1 / torch.arange(1.0, 30)]),
    "wishart": lambda: torch.linalg.svdvals(torch.randn(N, 300, generator=torch.Generator().manual_seed(0))) ** 2 / N,
}


@pytest.mark.parametrize("k", [3, 10])
@pytest.mark.parametrize("name", SPECTRA)
def test_products_of_eigsh_are_told_within_a_factor_of_one_and_a_half(name, k):
    d = SPECTRA[name]().double()
    A = from_callable(lambda V: d[:, None] * V, len(d), facts="symmetric", dtype=torch.float64)
    took = sorted(eigsh(A, k, seed=seed).products for seed in range(3))[1]
    told = plan(A, k=k).jobs[0].products
    assert took / 1.5 <= told <= 1.5 * took


@pytest.mark.parametrize("n", [1, 2, 3, 12, 60])
def test_small_operators_are_planned(n):
    for d in (torch.zeros(n), torch.ones(n), torch.arange(float(n)), torch.randn(n)):
        A = from_callable(lambda V, d=d: d[:, None] * V, n, facts="symmetric")
        assert 1 <= plan(A, budget=10**9, k=min(3, n)).jobs[0].products <= 40


def test_no_products_of_eigsh_are_made_without_a_sample():
    A, count = counting(from_callable(lambda V: V * 2, 400, facts="symmetric"))
    assert plan(A, budget=10**9, sample=0).jobs[0].products == 50
    assert count.total == 12


def test_an_operator_that_is_not_symmetric_is_planned_without_eigenpairs():
    found = plan(from_callable(lambda V: V.flip(0), 400), budget=10**9)
    assert found.jobs[0].products == 50
