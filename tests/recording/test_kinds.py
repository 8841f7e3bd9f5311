"""Models, loaders and batches on which a recording could go wrong without a word: each is a family."""

import random
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

from frechet import Objective, gauss_newton, hessian, jacobian, linearize, squared_error

N = 4  # batches
kept_or_not = pytest.mark.parametrize("memory", [None, 0], ids=["kept", "nothing kept"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y, Z = normal(N, 4, 2), normal(N, 4, 2, seed=1), normal(N, 4, 2, seed=2)


class Of(nn.Module):
    """f(layer, inputs...)."""

    def __init__(self, f, layer=None):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.layer = f, (layer or (lambda: nn.Linear(2, 2)))().double()

    def forward(self, *args, **more):
        return self.f(self.layer, *args, **more)


def smooth(layer, x):
    return layer(x).tanh()


def agree(objective, memory, *, plain=None, which=(hessian, gauss_newton)):
    """Linearized products are those of the operator, for vectors and blocks; `plain` batches go by plain products."""
    for make in which:
        A = make(objective, route="reverse")
        L, V = linearize(A, memory), normal(A.domain.dim, 9, seed=5)
        expected = A @ V
        for _ in range(2):
            torch.testing.assert_close(L @ V, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(L @ V[:, 1], expected[:, 1], rtol=1e-9, atol=1e-12)
        if make is jacobian:
            U = normal(A.codomain.dim, 2, seed=8)
            torch.testing.assert_close(L.T @ U, A.T @ U, rtol=1e-9, atol=1e-12)
        if plain is not None:
            assert (L.plain, len(L.served)) == (plain, L.batches + L.recomputed + L.plain), L.message
        assert L.message.startswith(f"{len(L.served) - L.plain} of {len(L.served)} batches are served by recordings")
    return L


# --- loaders that hand out memory of their own ------------------------------------------------------------------------


class Loader:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return self.batches()


def refilled_inputs():
    x = torch.empty(4, 2, dtype=torch.float64)
    for i in range(N):
        x.copy_(X[i])
        yield x, Y[i]


def refilled_targets():
    y = torch.empty(4, 2, dtype=torch.float64)
    for i in range(N):
        y.copy_(Y[i])
        yield X[i], y


def refilled_array():
    buffer = np.empty((4, 2))
    for i in range(N):
        buffer[...] = X[i].numpy()
        yield torch.from_numpy(buffer), Y[i]


def two_buffers_in_turn():
    both = torch.empty(2, 4, 2, dtype=torch.float64)
    for i in range(N):
        both[i % 2].copy_(X[i])
        yield both[i % 2], Y[i]


def parts_of_one_buffer():
    buffer = torch.empty(8, 2, dtype=torch.float64)
    for i in range(N):
        buffer[:4].copy_(X[i])
        buffer[4:].copy_(Y[i])
        yield buffer[:4], buffer[4:]


def by_dlpack():
    buffer = np.empty((4, 2))
    for i in range(N):
        buffer[...] = X[i].numpy()
        yield torch.from_dlpack(buffer), Y[i]


def made_anew():
    for i in range(N):
        yield X[i].clone(), Y[i].clone()


def at_an_offset_that_moves():
    at_an_offset_that_moves.start = (getattr(at_an_offset_that_moves, "start", 0) + 1) % 5
    for i in range(N):
        buffer = torch.empty(20, 2, dtype=torch.float64)
        part = buffer[at_an_offset_that_moves.start :][:4]
        part.copy_(X[i])
        yield part, Y[i]


LOADERS = (
    *(
        refilled_inputs,
        refilled_targets,
        refilled_array,
        two_buffers_in_turn,
        parts_of_one_buffer,
        by_dlpack,
        made_anew,
    ),
    at_an_offset_that_moves,
)


@kept_or_not
@pytest.mark.parametrize("batches", LOADERS, ids=lambda f: f.__name__)
def test_a_loader_may_hand_out_one_buffer_again_and_again(batches, memory):
    agree(Objective(Of(smooth), squared_error(), Loader(batches)), memory, plain=0)


def test_a_kept_product_does_not_follow_what_becomes_of_the_batches():
    x, y = X.clone(), Y.clone()
    model = Of(lambda layer, x: (layer(x) + model.table).tanh())
    model.table = Z[0].clone()
    A = hessian(Objective(model, squared_error(), list(zip(x, y, strict=True))))
    V = normal(A.domain.dim, 3)
    L, expected = linearize(A), A @ V
    for t in (x, y, model.table):
        t.fill_(7.0)
    torch.testing.assert_close(L @ V, expected)


@kept_or_not
def test_a_model_may_overwrite_what_it_remembers(memory):
    def f(layer, x):
        h = layer(x)
        if model.last is None:
            model.last = h.detach().clone()
        model.last.copy_(h.detach())
        return (h * model.last).tanh()

    model = Of(f)
    model.last = None
    agree(Objective(model, squared_error(), list(zip(X, Y, strict=True))), memory, plain=0)


# --- structure: what is in a batch, and how ---------------------------------------------------------------------------

Pair = namedtuple("Pair", "scale shift")


def optional(layer, x, scale=None, shift=None, more=None, times=1, **rest):
    h = layer(x)
    h = h if scale is None else h * scale
    h = h if shift is None else h + shift
    if isinstance(more, list | tuple):
        h = h * more[0] + (more[1] if isinstance(more, Pair) else 0)
    if isinstance(more, dict):
        h = h * next(iter(more.values()))
    kinds = {bool: 3.0, int: 1.0, float: 2.0, str: 0.5}
    h = h * kinds.get(type(times), 1.5)
    if isinstance(times, float) and np.copysign(1, times) < 0:
        h = h.sin()
    return (h * (2 if "flag" in rest else 1)).tanh()


def third(usual, other):
    """Batches whose third is another."""
    return [((other if i == 2 else usual)(i), Y[i]) for i in range(N)]


STRUCTURES = {
    "another optional key": third(lambda i: {"x": X[i], "scale": Z[i]}, lambda i: {"x": X[i], "shift": Z[i]}),
    "another order": third(lambda i: {"x": X[i], "scale": Z[i]}, lambda i: {"scale": Z[i], "x": X[i]}),
    "a key more": third(lambda i: {"x": X[i]}, lambda i: {"x": X[i], "flag": None}),
    "None in place of a tensor": third(lambda i: {"x": X[i], "scale": Z[i]}, lambda i: {"x": X[i], "scale": None}),
    "a pair in place of a tuple": third(
        lambda i: {"x": X[i], "more": (Z[i], X[i])}, lambda i: {"x": X[i], "more": Pair(Z[i], X[i])}
    ),
    "a dict in place of a list": third(
        lambda i: {"x": X[i], "more": [Z[i]]}, lambda i: {"x": X[i], "more": {"a": Z[i]}}
    ),
    "nested keys in another order": third(
        lambda i: {"x": X[i], "more": {"a": Z[i], "b": X[i]}}, lambda i: {"x": X[i], "more": {"b": X[i], "a": Z[i]}}
    ),
    **{
        f"{other!r} in place of {usual!r}": third(
            lambda i, t=usual: {"x": X[i], "times": t}, lambda i, t=other: {"x": X[i], "times": t}
        )
        for usual, other in (
            *((1, True), (True, 1), (1, 1.0), (1.0, 1), (0.0, -0.0), (0, False), ("1", 1), (np.float64(1), 1.0)),
        )
    },
    "the inputs twice": third(lambda i: {"x": X[i], "scale": Z[i]}, lambda i: {"x": X[i], "scale": X[i]}),
    "lists of strings": third(lambda i: {"x": X[i], "note": ["a"]}, lambda i: {"x": X[i], "note": ["b"], "flag": 1}),
}


@kept_or_not
@pytest.mark.parametrize("data", STRUCTURES.values(), ids=STRUCTURES)
def test_structure_keys_order_and_types_count(data, memory):
    agree(Objective(Of(optional), squared_error(), data), memory, plain=0)


@kept_or_not
def test_objects_in_a_batch_count_by_identity_and_by_what_they_do(memory):
    class Box:
        def __init__(self, number):
            self.number = number

        def __eq__(self, other):
            return True

        def __hash__(self):
            return 0

    def boxed(layer, x, box):
        return layer(x).tanh() * (box.number if isinstance(box, Box) else torch.from_numpy(box))

    arrays = Loader(lambda: (({"x": X[i], "box": np.full(2, 1.0 + i)}, Y[i]) for i in range(N)))
    for data in ([({"x": X[i], "box": Box(1 + i % 2)}, Y[i]) for i in range(N)], arrays):
        agree(Objective(Of(boxed), squared_error(), data), memory, plain=0)

    def one_array():
        buffer = np.zeros(2)
        for i in range(N):
            buffer[...] = 1.0 + i
            yield {"x": X[i], "box": buffer}, Y[i]

    agree(Objective(Of(boxed), squared_error(), Loader(one_array)), memory, plain=0)


def test_batches_that_come_otherwise_than_they_were_go_by_plain_products():
    passes = []

    def batches():
        passes.append(None)
        for i in range(N):
            x = X[i].t().contiguous().t() if len(passes) > 2 and i == 1 else X[i]
            yield x, Y[i]

    model = Of(lambda layer, x: layer(x).tanh() if x.is_contiguous() else layer(x).sin())
    A = hessian(Objective(model, squared_error(), Loader(batches)))
    L, V = linearize(A, 0), normal(A.domain.dim, 2)
    del passes[:]
    for _ in range(4):
        found = L @ V
        passes.pop()
        torch.testing.assert_close(found, A @ V)


# --- draws by the generators of Python, NumPy and PyTorch -------------------------------------------------------------

DRAWS = {
    "a layer dropped by Python": lambda layer, x: (layer(x).tanh() if random.random() < 0.5 else layer(x)).sin(),
    "a layer dropped by NumPy": lambda layer, x: (layer(x).tanh() if np.random.rand() < 0.5 else layer(x)).sin(),
    "a layer dropped by PyTorch": lambda layer, x: (layer(x).tanh() if torch.rand(()) < 0.5 else layer(x)).sin(),
    "an order by Python": lambda layer, x: layer(x)[:, random.sample(range(2), 2)].tanh(),
    "a number of times": lambda layer, x: sum(layer(x * k).tanh() for k in range(1, 2 + random.randrange(3))),
    "a factor by Python": lambda layer, x: layer(x).tanh() * random.random(),
    "a factor by NumPy": lambda layer, x: layer(x).tanh() * float(np.random.randn()),
    "an array by NumPy": lambda layer, x: layer(x).tanh() * torch.from_numpy(np.random.randn(2)),
}


@kept_or_not
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_inside_a_model_are_those_of_the_batch(draw, seed, memory):
    objective = Objective(Of(draw), squared_error(), list(zip(X, Y, strict=True)), dropout_seed=seed)
    agree(objective, memory, plain=N if memory == 0 and draw is DRAWS["a layer dropped by PyTorch"] else 0)


@kept_or_not
def test_noise_of_pytorch_is_kept_or_goes_by_plain_products(memory):
    noisy = Of(lambda layer, x: F.dropout(layer(x + torch.randn_like(x)).tanh(), 0.5))
    objective = Objective(noisy, squared_error(), list(zip(X, Y, strict=True)), dropout_seed=1)
    L = agree(objective, memory, plain=N if memory == 0 else 0)
    assert memory is None or "draws random numbers" in L.message


# --- numbers that PyTorch does not see --------------------------------------------------------------------------------


def by_empty(x):
    z = torch.empty_like(x)
    z.numpy()[...] = x.numpy() ** 2
    return z


def by_half_an_empty(x):
    z = torch.empty_like(x)
    z[:, :1] = x[:, :1]
    z[:, 1:].numpy()[...] = x[:, 1:].numpy() ** 2
    return z


def by_zeros(x):
    z = torch.zeros_like(x)
    z.numpy()[...] = np.sin(x.numpy())
    return z


def by_a_copy(x):
    z = x.clone()
    z.numpy()[0] *= 2
    return z


def by_dlpack_out(x):
    z = torch.empty(x.shape, dtype=x.dtype)
    np.from_dlpack(z).copy()  # may be read only: written through its address
    np.lib.stride_tricks.as_strided(z.numpy(), z.shape, z.numpy().strides)[...] = x.numpy() + 1
    return z


def by_an_array(x):
    return torch.from_numpy(np.tanh(x.numpy()))


def by_a_list(x):
    return torch.tensor([[float(np.float32(a)) for a in row] for row in x.tolist()], dtype=x.dtype)


def by_an_integer_empty(x):
    order = torch.empty(len(x), dtype=torch.long)
    order.numpy()[...] = np.argsort(x[:, 0].numpy())
    return x[order]


UNSEEN = (
    by_empty,
    by_half_an_empty,
    by_zeros,
    by_a_copy,
    by_dlpack_out,
    by_an_array,
    by_a_list,
    by_an_integer_empty,
)
RAGGED = {
    "one": [(X[0], Y[0])],
    "alike": list(zip(X, Y, strict=True)),
    "ragged": [(X[0], Y[0]), (X[1], Y[1]), (X[2, :3], Y[2, :3]), (X[3, :3], Y[3, :3])],
}


@kept_or_not
@pytest.mark.parametrize("data", RAGGED.values(), ids=RAGGED)
@pytest.mark.parametrize("prepare", UNSEEN, ids=lambda f: f.__name__)
def test_inputs_may_be_prepared_where_pytorch_does_not_see_it(prepare, data, memory):
    seen_otherwise = prepare in (by_zeros, by_a_copy) and memory == 0  # what is recorded is not what is there
    model = Of(lambda layer, x: layer(prepare(x)).tanh())
    agree(Objective(model, squared_error(), data), memory, plain=len(data) if seen_otherwise else 0)


@kept_or_not
def test_unseen_preparation_of_the_odd_batch_alone(memory):
    model = Of(lambda layer, x: layer(x if len(x) == 4 else by_empty(x)).tanh())
    for _ in range(3):
        _other = [normal(n) for n in (3, 6, 18)]  # other allocations between
        agree(Objective(model, squared_error(), RAGGED["ragged"]), memory, plain=0)


def test_what_depends_on_the_vector_outside_of_pytorch_goes_by_plain_products():
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.from_numpy(x.detach().numpy() / 2)

        @staticmethod
        def backward(ctx, g):
            return Halved.apply(g)

    objective = Objective(Of(lambda layer, x: Halved.apply(layer(x)).sin()), squared_error(), RAGGED["alike"])
    L = agree(objective, None, which=(hessian,), plain=N)
    assert "differs from a plain product" in L.message


# --- layout -----------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "columns first": lambda x: x.t().contiguous().t(),
    "every other": lambda x: torch.stack([x, x], -1)[..., 0],
    "within a storage": lambda x: torch.cat([x, x])[2:6],
    "one row repeated": lambda x: x[:1].expand(4, 2),
    "requires grad": lambda x: x.clone().requires_grad_(),
}
DECIDING = {
    "contiguous": lambda layer, x: layer(x).tanh() if x.is_contiguous() else layer(x).sin(),
    "stride": lambda layer, x: layer(x).tanh() * (1 + x.stride(0)),
    "offset": lambda layer, x: layer(x).tanh() + x.as_strided((2,), (1,), x.storage_offset()),
    "view": lambda layer, x: layer(x).tanh() + (x.view(-1) if x.is_contiguous() else x.reshape(-1))[:2],
    "requires grad": lambda layer, x: layer(x).tanh() if x.requires_grad else layer(x).sin(),
}


@kept_or_not
@pytest.mark.parametrize("decide", DECIDING.values(), ids=DECIDING)
@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
def test_a_batch_of_another_layout_is_another_batch(lay, decide, memory):
    data = [(lay(x) if i == 2 else x, y) for i, (x, y) in enumerate(zip(X, Y, strict=True))]
    agree(Objective(Of(decide), squared_error(), data), memory, plain=0)


@kept_or_not
@pytest.mark.parametrize("way", [torch.channels_last, torch.contiguous_format])
def test_images_may_change_their_layout(way, memory):
    images, other = normal(N, 4, 3, 4, 4), torch.channels_last if way is torch.contiguous_format else way
    data = [(x.to(memory_format=way if i == 2 else other), y) for i, (x, y) in enumerate(zip(images, Y, strict=True))]
    net = lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))  # noqa: E731
    agree(Objective(Of(lambda m, x: m(x), net), squared_error(), data), memory, plain=0)


# --- complex numbers --------------------------------------------------------------------------------------------------


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.bias = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.zeros(1))


COMPLEX = {
    "conj": lambda m, x: torch.fft.ifft(torch.fft.fft(x + m.bias).conj() * torch.view_as_complex(m.w)).real,
    "abs": lambda m, x: (torch.fft.fft(x + m.bias) * torch.view_as_complex(m.w).conj()).abs(),
    "imag of conj": lambda m, x: torch.fft.fft(x + m.bias).conj().imag.sin() + torch.view_as_complex(m.w).conj().imag,
    "negated": lambda m, x: torch.view_as_complex(m.w).conj().imag * x.exp() + m.bias,
    "rfft": lambda m, x: torch.fft.irfft(torch.fft.rfft((x + m.bias).tanh()).conj() * torch.view_as_complex(m.w), n=2),
    "matmul": lambda m, x: torch.view_as_real(
        torch.fft.fft(x + m.bias).conj() @ torch.view_as_complex(m.w).conj().unsqueeze(1)
    ).flatten(1),
    "square": lambda m, x: (torch.view_as_complex(m.w) ** 2 * torch.fft.fft(x + m.bias)).real.tanh(),
    "resolved": lambda m, x: torch.fft.fft(x + m.bias).conj().resolve_conj().imag * torch.view_as_complex(m.w).real,
}


@kept_or_not
@pytest.mark.parametrize("f", COMPLEX.values(), ids=COMPLEX)
def test_complex_numbers_keep_their_bits(f, memory):
    objective = Objective(Of(f, Spectral), squared_error(), list(zip(X, Y, strict=True)))
    for make in (hessian, gauss_newton, jacobian):
        A = make(objective, route="reverse")
        L = linearize(A, memory)
        assert L.plain == 0
        V = normal(3, A.domain.dim, seed=5).T
        each = torch.stack([A @ v.clone() for v in V.T], 1)
        torch.testing.assert_close(L @ V, each, rtol=1e-9, atol=1e-12)


@kept_or_not
@pytest.mark.parametrize("bits", [torch.Tensor.conj, lambda z: z.conj().imag, torch.clone])
def test_batches_may_be_conjugated_or_negated(bits, memory):
    z = torch.view_as_complex(normal(N, 4, 2, 2))
    others = [torch.Tensor.conj, torch.clone] if bits(z[0]).is_complex() else [bits]
    data = [((X[i], (bits if i != 2 else others[-1])(z[i])), Y[i]) for i in range(N)]
    model = Of(lambda layer, x, z: (layer(x) + (z * z).abs() + (z.imag if z.is_complex() else z)).tanh())
    agree(Objective(model, squared_error(), data), memory, plain=0)


# --- objectives in which one term stands twice ------------------------------------------------------------------------


@kept_or_not
@pytest.mark.parametrize(
    "combine",
    [lambda o, p: o + o, lambda o, p: 0.5 * o + 2 * o, lambda o, p: o + p + o, lambda o, p: (o + p) + (o + p)],
    ids=["twice", "weighted", "around another", "sums"],
)
def test_an_objective_may_stand_twice_in_a_sum(combine, memory):
    model = Of(smooth)
    first = Objective(model, squared_error(), list(zip(X, Y, strict=True)))
    other = Objective(model, squared_error(), [(Z[0, :3], Y[0, :3])])
    agree(combine(first, other), memory, plain=0, which=(hessian, gauss_newton))
    small = int(linearize(hessian(first)).bytes * 1.5)
    agree(combine(first, other), small, plain=0, which=(hessian,))


# --- tensors that are not numbers in strided memory -------------------------------------------------------------------


def jagged(layout):
    return torch.nested.nested_tensor([x[:n] for x, n in zip(X, (4, 3, 1), strict=False)], layout=layout)


def nested_inside(layer, x):
    rows = torch.nested.nested_tensor([x[:1], x[1:]], layout=torch.jagged)
    return layer(rows.values()).tanh()


def test_jagged_tensors_go_by_plain_products():
    model = Of(lambda layer, x: layer(x).tanh().values())
    objective = Objective(model, squared_error(), [(jagged(torch.jagged), torch.cat([Y[0], Y[1]])), (X[0], Y[0])][:1])
    A = hessian(objective)
    L, v = linearize(A), normal(A.domain.dim)
    torch.testing.assert_close(L @ v, A @ v)
    assert (L.plain, L.batches) == (1, 0)
    assert "NestedTensor" in L.message


@kept_or_not
def test_jagged_tensors_inside_a_model_go_as_they_can(memory):
    agree(Objective(Of(nested_inside), squared_error(), list(zip(X, Y, strict=True))), memory, which=(hessian,))


ADJACENCY = (normal(4, 4).abs() < 0.7).double()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@kept_or_not
@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=["coo", "csr"])
def test_sparse_inputs_go_by_plain_products(sparse, memory):
    model = Of(lambda layer, x, a: a @ (a @ layer(x)).tanh())
    data = [((X[i], sparse(ADJACENCY)), Y[i]) for i in range(2)]
    L = agree(Objective(model, squared_error(), data), memory, which=(hessian,), plain=2)
    assert "torch.sparse" in L.message


@kept_or_not
def test_sparse_tensors_inside_a_model_go_as_they_can(memory):
    model = Of(lambda layer, x: ADJACENCY.to_sparse() @ layer(x).tanh())
    agree(Objective(model, squared_error(), list(zip(X, Y, strict=True))), memory, which=(hessian,))


@kept_or_not
def test_gradients_of_an_embedding_may_be_sparse(memory):
    tokens = torch.tensor([[0, 2, 2, 5]])
    table = lambda: nn.Embedding(6, 2)  # noqa: E731
    model = Of(lambda m, t: F.embedding(t, m.weight, sparse=True).tanh(), table)
    A = hessian(Objective(model, squared_error(), [(tokens[0], Y[0])]))
    L, V = linearize(A, memory), normal(A.domain.dim, 3)
    torch.testing.assert_close(L @ V, A @ V)


class Marked(torch.Tensor):
    """A tensor with a class of its own."""


@kept_or_not
def test_tensors_of_another_class_or_with_attributes_go_by_plain_products(memory):
    with_attribute = X[1].clone()
    with_attribute.scale = 2.0
    data = [(X[0], Y[0]), (X[0].as_subclass(Marked), Y[0]), (with_attribute, Y[1])]
    model = Of(lambda layer, x: layer(x).tanh().as_subclass(torch.Tensor) * getattr(x, "scale", 1.0))
    L = agree(Objective(model, squared_error(), data), memory, which=(hessian,), plain=2)
    assert "Marked" in L.message
    assert "attributes" in L.message


@kept_or_not
def test_packed_sequences_are_recorded(memory):
    def rows(layer, packed):
        return layer(packed.data).tanh()

    packs = [pack_sequence([x[:3], x[:1]]) for x in X]
    agree(Objective(Of(rows), squared_error(), [(({"packed": p}), y) for p, y in zip(packs, Y, strict=True)]), memory)


# --- models that do more than layers ----------------------------------------------------------------------------------


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, g):
        return 3 * g


@torch.library.custom_op("frechet_tests::cubed", mutates_args=())
def cubed(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy() ** 3)


cubed.register_autograd(
    lambda ctx, g: g * 3 * ctx.saved_tensors[0] ** 2,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def hooked(layer, x):
    h = layer(x)
    if h.requires_grad:
        h.register_hook(lambda g: g * 1.0)
    return h.tanh()


def in_place(layer, x):
    h = layer(x) * 1.0
    h[:, 0] *= 2
    out = torch.empty_like(h)
    out[:, :1], out[:, 1:] = h[:, 1:], h[:, :1]
    return out.add_(x).tanh_()


RICHER = {
    "vmap": lambda layer, x: torch.func.vmap(lambda row: (row * row.sum()).tanh())(layer(x)),
    "grad": lambda layer, x: torch.func.grad(lambda z: z.sin().sum())(layer(x)),
    "a function of its own": lambda layer, x: Tripled.apply(layer(x)).tanh(),
    "an operation of its own": lambda layer, x: 0.1 * cubed(layer(x)),
    "hooks": hooked,
    "in place": in_place,
    "checkpoints": lambda layer, x: checkpoint(lambda z: layer(z).tanh(), x, use_reentrant=False),
    "a branch": lambda layer, x: layer(x).tanh() if bool(x[0, 0] > 0) else layer(x).sin(),
    "rows by mask": lambda layer, x: layer(x).index_add(0, (x[:, 0] > 0).nonzero()[:, 0], layer(x[x[:, 0] > 0])).tanh(),
    "a table": lambda layer, x: layer(x).tanh() * torch.arange(2, dtype=x.dtype),
    "data": lambda layer, x: layer(x + x.data.exp()).tanh(),
    "swapped data": lambda layer, x: _swapped(layer(x)),
}


def _swapped(h):
    buffer = torch.zeros(1, dtype=h.dtype)
    buffer.data = h.detach().sin()
    return h * buffer


@kept_or_not
@pytest.mark.parametrize("f", RICHER.values(), ids=RICHER)
def test_models_that_do_more_than_layers_are_recorded(f, memory):
    agree(Objective(Of(f), squared_error(), list(zip(X, Y, strict=True))), memory, plain=0, which=(hessian, jacobian))
