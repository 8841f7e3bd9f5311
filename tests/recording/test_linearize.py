import gc
import os
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frechet.errors import NonFinite, UnusableObjective
from frechet.objective import Objective, l2
from frechet.objective.criteria import custom, squared_error
from frechet.operators import from_callable, identity
from frechet.operators.derivatives import fisher, gauss_newton, hessian, jacobian, ntk
from frechet.operators.derivatives._gauss_newton import empirical_fisher
from frechet.operators.derivatives._modes import lacks_forward
from frechet.recording import linearize
from frechet.recording._replay import record
from laws import LAWS, block, close
from objective_cases import (
    MAKERS,
    binary,
    causal_language_model,
    conv_net_with_batch_norm,
    gauss_newton_of,
    hessian_of,
    jacobian_of,
    mlp,
    penalized_sum,
    poisson_counts,
    prepared,
    ragged,
    randn,
    tanh_mlp,
    weight_norm,
)

named = pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)


def routes(objective):
    return ["reverse"] if lacks_forward(objective.model) else ["reverse", "forward"]


kept_or_not = pytest.mark.parametrize("memory", [None, 0], ids=["kept", "nothing kept"])


@kept_or_not
@named
def test_the_hessian_is_the_dense_one(make, memory):
    objective, H = prepared(make)[0].objective, hessian_of(make)
    for route in routes(objective):
        L = linearize(hessian(objective, route=route), memory)
        V = block(L.domain, 3, 1)
        assert L.route == route
        close(L @ V, H @ V)
        close(L @ V[:, 0], H @ V[:, 0])


@kept_or_not
@named
def test_gauss_newton_is_the_dense_one(make, memory):
    objective, G = prepared(make)[0].objective, gauss_newton_of(make)
    if make is penalized_sum:
        G = G + 0.3 * torch.eye(len(G), dtype=G.dtype)  # the convex penalty is in
    for route in routes(objective):
        L = linearize(gauss_newton(objective, route=route), memory)
        V = block(L.domain, 2, 1)
        close(L @ V, G @ V)


@named
def test_the_jacobian_and_the_kernel_are_the_dense_ones(make):
    objective, J = prepared(make)[0].objective, jacobian_of(make)
    for route in routes(objective):
        L, K = linearize(jacobian(objective, route=route)), linearize(ntk(objective, route=route))
        V, U = block(L.domain, 2, 1), block(L.codomain, 2, 2)
        close(L @ V, J @ V)
        close(L.T @ U, J.T @ U)
        close(K @ U, J @ (J.T @ U))


@pytest.mark.parametrize("make", [tanh_mlp, binary], ids=lambda m: m.__name__)
def test_the_fisher_matrices_stay_what_they_are(make):
    objective = prepared(make)[0].objective
    for A in (
        fisher(objective),
        fisher(objective, seed=3, samples=2),
        empirical_fisher(objective, per="example"),
        empirical_fisher(objective, per="term"),
    ):
        close(linearize(A).dense(), A.dense())


@pytest.mark.parametrize("route", ["reverse", "forward"])
@pytest.mark.parametrize("law", LAWS, ids=lambda f: f.__name__)
def test_it_obeys_every_law(law, route):
    objective = prepared(penalized_sum)[0].objective
    law(linearize(hessian(objective, route=route)), SimpleNamespace(dense=hessian_of(penalized_sum)))
    objective, J = prepared(poisson_counts)[0].objective, jacobian_of(poisson_counts)
    law(linearize(jacobian(objective, route=route)), SimpleNamespace(dense=J))
    law(linearize(ntk(objective, route=route)), SimpleNamespace(dense=J @ J.T))


@pytest.mark.parametrize("route", ["reverse", "forward"])
def test_functions_are_linearized_too(route):
    x = randn(3)

    def f(x):
        return torch.stack([x[0] * x[1], x[2].sin(), x.prod(), x[0] ** 3])

    J = torch.autograd.functional.jacobian(f, x)
    H = torch.autograd.functional.hessian(lambda x: f(x).prod(), x)
    for law in LAWS:
        law(linearize(jacobian(f, x, route=route)), SimpleNamespace(dense=J))
        law(linearize(hessian(lambda x: f(x).prod(), x, route=route)), SimpleNamespace(dense=H))


def test_composites_are_linearized_factor_by_factor():
    objective, H, J = prepared(tanh_mlp)[0].objective, hessian_of(tanh_mlp), jacobian_of(tanh_mlp)
    A, K = hessian(objective), jacobian(objective)
    L = linearize(2 * A + 0.5 * K.T @ K - 0.1 * identity(A.domain))
    close(L.dense(), 2 * H + 0.5 * J.T @ J - 0.1 * torch.eye(len(H), dtype=H.dtype))
    assert L.facts == (2 * A + 0.5 * K.T @ K - 0.1 * identity(A.domain)).facts


@pytest.mark.parametrize("make", [tanh_mlp, conv_net_with_batch_norm], ids=lambda m: m.__name__)
def test_several_derivatives_in_one_expression_keep_each_their_own(make):
    objective, H, G = prepared(make)[0].objective, hessian_of(make), gauss_newton_of(make)
    for A, dense in (
        (gauss_newton(objective) + hessian(objective), G + H),
        (hessian(objective) + 2 * gauss_newton(objective), H + 2 * G),
        (hessian(objective) @ hessian(objective), H @ H),
    ):
        L = linearize(A)
        V = block(L.domain, 3, 1)
        close(L @ V, dense @ V)
        parts = [linearize(hessian(objective)).bytes, linearize(gauss_newton(objective)).bytes]
        assert L.bytes > max(parts)


def test_batches_that_do_not_fit_are_recomputed():
    for make in (tanh_mlp, conv_net_with_batch_norm, penalized_sum):
        objective, H = prepared(make)[0].objective, hessian_of(make)
        whole = linearize(hessian(objective))
        some = linearize(hessian(objective), memory=int(whole.bytes * 0.8))
        assert whole.recomputed == 0
        assert some.recomputed > 0
        assert 0 < some.batches < whole.batches
        assert some.bytes <= whole.bytes * 0.8
        V = block(some.domain, 3, 1)
        close(some @ V, H @ V)
        assert "recomputed" in repr(some)


def test_kept_recorded_and_plain_batches_go_together():
    model = mlp(nn.Tanh())
    X, Y = randn(9, 2), randn(9, 2, seed=9)
    whole = Objective(model, squared_error(), ragged(X, Y, sizes=(2, 3, 3, 1)), penalty=l2(0.2))
    H = hessian(whole)
    V = block(H.domain, 3, 1)
    for share, counts in ((0, (0, 4)), (0.5, (1, 3)), (0.85, (2, 2)), (3, (4, 0))):
        L = linearize(H, int(share * linearize(H).bytes))
        assert (L.batches, L.recomputed, L.plain) == (*counts, 0)
        assert L.message == "4 of 4 batches are served by recordings"
        close(L @ V, H @ V)
        close(L @ V[:, 0], H @ V[:, 0])


def test_batches_that_draw_go_by_the_operator_itself_where_they_do_not_fit():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 2)).double().train()
    H = hessian(Objective(model, squared_error(), ragged(randn(5, 2), randn(5, 2, seed=9)), dropout_seed=0))
    whole = linearize(H)
    assert (whole.batches, whole.plain) == (3, 0)
    V = block(H.domain, 2, 1)
    close(whole @ V, H @ V)
    for memory, kept in ((int(0.8 * whole.bytes), 2), (0, 0)):
        some = linearize(H, memory)
        assert (some.batches, some.recomputed, some.plain) == (kept, 0, 3 - kept)
        assert "draws random numbers, which would be others each time" in some.message
        assert "do not fit into" in some.message
        assert f"{3 - kept} by plain products" in repr(some)
        close(some @ V, H @ V)


def test_chunked_heads_go_by_the_operator_itself_where_they_do_not_fit():
    case = prepared(causal_language_model)[0]
    part = case.objective.parts[0]
    chunked = Objective(case.objective.model, part.criterion, part.data, split=part.split, head="head", head_rows=2)
    v = block(chunked.space, 1, 1)
    n = len(list(case.objective.batches()))
    for objective, scale, recomputed in ((chunked, 1, 0), (chunked + 0.5 * case.objective, 1.5, n)):
        L = linearize(hessian(objective), 0)
        assert (L.batches, L.recomputed, L.plain) == (0, recomputed, n)
        close(L @ v, scale * hessian_of(causal_language_model) @ v)


@pytest.fixture
def recordings(monkeypatch):
    """What is recorded, as it happens: the number of tensors of the batch."""
    seen = []

    def counted(*arguments):
        seen.append(arguments[-1])
        return record(*arguments)

    monkeypatch.setattr("frechet.recording._recordings.record", counted)
    return seen


@kept_or_not
def test_batches_that_look_the_same_are_recorded_once(recordings, memory):
    X, Y = randn(11, 2), randn(11, 2, seed=9)
    for A in (hessian, gauss_newton):
        recordings.clear()
        operator = A(Objective(mlp(nn.Tanh()), squared_error(), ragged(X, Y, sizes=(3, 3, 3, 2))))
        L = linearize(operator, memory)
        assert len(recordings) == 2
        close(L.dense(), operator.dense())
        assert L.pays_after >= 1


class Deciding(nn.Module):
    """A model whose operations hang on the numbers in its batch, which it reads in one way or another."""

    def __init__(self, way):
        super().__init__()
        self.way, self.layer = way, nn.Linear(2, 2).double()

    def forward(self, x):
        match self.way:
            case "branch":
                large = bool(x[0, 0] > 0)
            case "list":
                large = x.tolist()[0][0] > 0
            case "array":
                large = x.numpy()[0, 0] > 0
            case "rows":
                return self.layer(x[x[:, 0] > 0]).sum(0).tanh().expand(len(x), 2)
            case "lengths":
                lengths = (x > 0).sum(1).clamp(min=1)
                packed = nn.utils.rnn.pack_padded_sequence(
                    self.layer(x).unsqueeze(2), lengths, batch_first=True, enforce_sorted=False
                )
                return packed.data.sum().tanh().expand(len(x), 2)
        h = self.layer(x)
        return h.tanh() if large else h.sin()


@kept_or_not
@pytest.mark.parametrize("way", ["branch", "list", "array", "rows", "lengths"])
def test_models_that_decide_by_the_numbers_in_a_batch_are_recorded_as_they_decide(way, memory):
    first, *others = randn(15, 2).split(3)
    X = [first, 2 * first, *others]  # two batches alike, so that comparing them would say nothing
    assert {bool(x[0, 0] > 0) for x in X} == {True, False}
    batches = list(zip(X, randn(18, 2, seed=9).split(3), strict=True))
    for A in (hessian, gauss_newton):
        operator = A(Objective(Deciding(way), squared_error(), batches), route="reverse")
        L = linearize(operator, memory)
        close(L.dense(), operator.dense())
        assert L.plain == 0 or (way == "lengths" and memory == 0)


@kept_or_not
def test_what_is_in_a_batch_beside_tensors_counts_too(recordings, memory):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2).double()

        def forward(self, x, times, extra):
            return self.layer(x).tanh() * times

    X, Y = randn(12, 2).split(3), randn(12, 2, seed=9).split(3)
    extra = torch.ones(1).numpy()
    data = [
        {"x": x, "times": t, "labels": y, "extra": e} for x, t, y, e in zip(X, (2, 3, 3, 2), Y, "aaba", strict=True)
    ]
    operator = hessian(Objective(Scaled(), squared_error(), data))
    close(linearize(operator, memory).dense(), operator.dense())
    assert len(recordings) == 3
    recordings.clear()
    operator = hessian(Objective(Scaled(), squared_error(), [{**b, "extra": extra.repeat(2)} for b in data]))
    close(linearize(operator, memory).dense(), operator.dense())
    assert len(recordings) <= 8


@kept_or_not
def test_one_tensor_in_two_places_is_not_two(recordings, memory):
    X, Y = randn(9, 2).split(3), randn(9, 2, seed=9).split(3)
    data = [(X[0], X[0]), (X[1], Y[1]), (X[2], Y[2])]
    operator = hessian(Objective(mlp(nn.Tanh()), squared_error(), data))
    close(linearize(operator, memory).dense(), operator.dense())
    assert len(recordings) == 2


def test_inputs_that_are_prepared_outside_of_pytorch_may_be_kept():
    class Prepared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2).double()

        def forward(self, x):
            z = torch.empty_like(x)
            z.numpy()[...] = x.numpy() ** 2
            return self.layer(z).tanh()

    X, Y = randn(9, 2), randn(9, 2, seed=9)
    for sizes in ((9,), (3, 3, 3)):
        operator = hessian(Objective(Prepared(), squared_error(), ragged(X, Y, sizes=sizes)))
        close(linearize(operator).dense(), operator.dense())
        L = linearize(operator, 0)
        assert L.recomputed == len(sizes)
        assert L.bytes == X.nbytes
        close(L.dense(), operator.dense())


def test_recomputed_batches_are_read_again_and_must_look_as_they_did():
    batches = ragged(randn(5, 2), randn(5, 2, seed=9))

    class Data:
        def __iter__(self):
            yield from ((x.clone(), y.clone()) for x, y in batches)

    model = mlp(nn.Tanh())
    for A in (hessian, jacobian):
        L = linearize(A(Objective(model, squared_error(), Data())), 0)
        assert L.bytes < 1000
        kept = list(batches)
        v = block(L.domain, 1, 1)
        batches[-1] = kept[0]
        with pytest.raises(UnusableObjective, match=r"must give the same batches each time, but batch \d has"):
            L @ v
        batches[:] = kept
        close(L @ v, A(Objective(model, squared_error(), kept)) @ v)


def test_a_function_with_nothing_kept_is_the_same_map():
    x = randn(3)

    def f(x):
        return torch.stack([x[0] * x[1], x[2].sin(), x.prod(), x[0] ** 3])

    for A in (jacobian(f, x), hessian(lambda x: f(x).prod(), x)):
        L = linearize(A, 0)
        assert (L.batches, L.recomputed, L.bytes) == (0, 1, 0)
        close(L.dense(), A.dense())
        close(L.T.dense(), A.dense().T)
        some = linearize(A, 8)  # bytes: not enough
        assert some.bytes <= 8
        close(some.dense(), A.dense())


def test_large_convolutions_are_recorded_in_forward_mode_where_there_is_one(monkeypatch):
    monkeypatch.setattr("frechet.recording._recordings.SMALL", 1 << 14)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 2)).double()
    X, Y = randn(40, 1, 4, 4), randn(40, 2, seed=1)
    quartic = custom(lambda f, y: (f - y).pow(4).sum(1))
    without_forward_mode = custom(lambda f, y: F.huber_loss(f, y).expand(len(f)))
    for criterion, route in ((quartic, "forward"), (without_forward_mode, "reverse")):
        H = hessian(Objective(model, criterion, [(X, Y)]))
        for memory in (None, 0):
            L, few = linearize(H, memory), linearize(hessian(Objective(model, criterion, [(X[:2], Y[:2])])), memory)
            assert (H.route, L.route, few.route) == ("reverse", route, "reverse")
            V = block(H.domain, 2, 1)
            close(L @ V, H @ V)


def test_a_kept_product_reads_the_data_no_more():
    reads = []

    class Data:
        def __iter__(self):
            reads.append(None)
            yield from ragged(randn(5, 2), randn(5, 2, seed=9))

    H = hessian(Objective(prepared(tanh_mlp)[0].objective.model, squared_error(), Data()))
    L = linearize(H)
    assert len(reads) == 1
    close(L.dense(), hessian_of(tanh_mlp))
    assert len(reads) == 1


@kept_or_not
def test_later_training_changes_nothing(memory):
    case = conv_net_with_batch_norm()
    L = linearize(hessian(case.objective), memory)
    v = block(L.domain, 1, 1)
    before = L @ v
    with torch.no_grad():
        for t in (*case.objective.model.parameters(), *case.objective.model.buffers()):
            t.add_(1)
    case.objective.model.train()
    assert torch.equal(L @ v, before)


def test_it_holds_memory_until_it_is_released():
    objective = prepared(tanh_mlp)[0].objective
    with linearize(hessian(objective)) as L:
        assert L.bytes > 0
        assert "MiB held" in repr(L)
    assert L.bytes == 0
    assert "released" in repr(L)
    with pytest.raises(RuntimeError, match="its memory was released; make another"):
        L @ block(L.domain, 1, 0)


def test_what_it_says_it_holds_is_what_it_holds():
    model = nn.Sequential(nn.Linear(50, 400), nn.Tanh(), nn.Linear(400, 1)).double()
    objective = Objective(model, squared_error(), [(randn(300, 50), randn(300, 1))])

    def alive():
        gc.collect()
        seen = {}
        for o in gc.get_objects():
            # a wrapper that another test's traceback keeps alive has no storage
            wrapped = type(o) is torch.Tensor and torch._C._functorch.is_functorch_wrapped_tensor(o)
            if type(o) is torch.Tensor and o.layout is torch.strided and not wrapped:
                seen[o.untyped_storage().data_ptr()] = o.untyped_storage().nbytes()
        return sum(seen.values())

    H = hessian(objective)
    before = alive()
    L = linearize(H)
    assert abs(alive() - before - L.bytes) < 0.05 * L.bytes
    # the activations, their slopes, and the gradient in them
    assert L.bytes < 6 * 300 * 400 * 8
    del L
    before = alive()
    L = linearize(H, memory=0)
    assert alive() - before < 0.01 * H.snapshot.x.nbytes
    assert L.bytes < 1000
    assert linearize(hessian(lambda x: x.pow(3).sum(), randn(9)), memory=0).bytes == 0


@kept_or_not
def test_a_vector_that_is_not_finite_is_named(memory):
    L = linearize(hessian(prepared(tanh_mlp)[0].objective), memory)
    with pytest.raises(NonFinite, match="batch 0 gives a NaN"):
        L @ torch.full_like(block(L.domain, 1, 0), torch.nan)


def test_mean_squared_error_of_torch_inside_a_custom_loss_does_not_crash_the_process():
    def terms(f, y):
        return F.mse_loss(f, y, reduction="none").sum(1)

    model, X, Y = mlp(nn.Tanh()), randn(5, 2), randn(5, 2, seed=9)
    objective = Objective(model, custom(terms), ragged(X, Y))
    close(linearize(hessian(objective)).dense(), 2 * hessian_of(tanh_mlp))
    close(linearize(gauss_newton(objective)).dense(), 2 * gauss_newton_of(tanh_mlp))
    mean = Objective(model, custom(lambda f, y: F.mse_loss(f, y, reduction="none").mean(1)), ragged(X, Y))
    for route in ("reverse", "forward"):
        close(linearize(hessian(mean, route=route)).dense(), hessian_of(tanh_mlp))


def test_code_outside_of_pytorch_is_found_out_and_goes_by_plain_products():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return (
                Doubled.apply(torch.from_numpy(g.detach().numpy().copy())) if not g.requires_grad else Doubled.apply(g)
            )

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp(nn.Tanh())

        def forward(self, x):
            return Doubled.apply(self.inner(x))

    objective = Objective(Model(), squared_error(), ragged(randn(5, 2), randn(5, 2, seed=9)))
    jacobian(objective, route="reverse").T @ randn(10)
    J = jacobian(objective, route="reverse")
    L = linearize(J)
    assert L.plain == 3
    assert "differs from a plain product" in L.message
    close(L.T @ randn(10, 2), J.T @ randn(10, 2))


def test_bad_arguments_are_told_in_one_sentence():
    H = hessian(prepared(tanh_mlp)[0].objective)
    with pytest.raises(TypeError, match=r"A must be an operator, got Objective; write linearize\(hessian"):
        linearize(prepared(tanh_mlp)[0].objective)
    with pytest.raises(ValueError, match="memory must be a number of bytes, 0 or more, got -1"):
        linearize(H, memory=-1)
    with pytest.raises(TypeError, match="must hold a derivative"):
        linearize(from_callable(lambda V: V, 3, facts="symmetric"))
    with pytest.raises(TypeError, match="must not be linearized already"):
        linearize(linearize(H))


def test_a_monte_carlo_fisher_is_kept_whole_or_not_at_all():
    F = fisher(prepared(binary)[0].objective, seed=0)
    whole = linearize(F)
    some = linearize(F, memory=int(whole.bytes * 0.8))
    assert (whole.plain, some.batches, some.bytes) == (0, 0, 0)
    assert "labels are drawn in one stream for all batches" in some.message
    for L in (whole, some):
        close(L.dense(), F.dense())


def test_it_tells_when_it_has_paid_for_itself():
    L = linearize(hessian(prepared(weight_norm)[0].objective))
    assert L.pays_after >= 1
    assert L.seconds > 0


@pytest.mark.slow
def test_a_compiled_product_is_the_eager_one():
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile needs a C++ compiler")
    objective = Objective(
        nn.Sequential(nn.Linear(2, 2), nn.Tanh()).double(), squared_error(), [(randn(3, 2), randn(3, 2))]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own deprecations
        plain, compiled = (linearize(hessian(objective), compile=c) for c in (False, True))
        anew = linearize(hessian(objective), 0, compile=True)
        V = block(plain.domain, 3, 1)
        close(compiled @ V[:, 0], plain @ V[:, 0])
        close(compiled @ V, plain @ V)
        close(anew @ V[:, 0], plain @ V[:, 0])
    assert compiled.budget.replays[0].code == plain.budget.replays[0].code
    assert compiled.budget.replays[0].run is not plain.budget.replays[0].run


def test_penalties_without_data_dependence_are_added_once():
    X, Y, model = randn(5, 2), randn(5, 2, seed=9), prepared(tanh_mlp)[0].objective.model
    objective = Objective(model, squared_error(), ragged(X, Y), penalty=l2(0.7))
    expected = hessian_of(tanh_mlp)
    close(linearize(hessian(objective)).dense(), expected + 0.7 * torch.eye(len(expected), dtype=expected.dtype))
