"""Series of every operation in torch's own list of operations, against nested autograd to order 6 in float64.

The reference differentiates t -> <w, f(x + t v)> six times by reverse mode. Where torch's own derivatives of that order
are missing or wrong, a formula stands in for the operation in the reference.
"""

import functools
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves

from frechet.calculus.taylor import jet
from frechet.calculus.taylor._jet import propagated
from frechet.calculus.taylor._series import Frame
from frechet.errors import NotDifferentiable
from frechet.objective._functions import Functions

F64 = torch.float64
ORDER, SAMPLES, LARGEST, RTOL = 6, 2, 1500, 1e-9


def words(names):
    return names.split()


# operations that are refused, each by its name in a sentence
REFUSED = set(
    words(
        "_segment_reduce.lengths _segment_reduce.offsets as_strided as_strided_copy as_strided.partial_views "
        "as_strided_scatter bernoulli grid_sampler_2d grid_sampler_3d i0 index_reduce.amax "
        "index_reduce.amin index_reduce.mean index_reduce.prod linalg.cond linalg.eig linalg.eigvals "
        "linalg.householder_product linalg.lstsq linalg.lstsq.grad_oriented linalg.pinv linalg.pinv.hermitian "
        "linalg.pinv.singular linalg.svd linalg.svdvals matrix_exp nn.functional.ctc_loss nextafter "
        "nn.functional.grid_sample norm.nuc normal "
        "normal.number_mean ormqr pca_lowrank pinverse scatter_reduce.amax scatter_reduce.amin scatter_reduce.prod "
        "special.i0e special.i1 special.i1e stft svd svd_lowrank to_sparse"
    )
)

# operations with a rule for some of their arguments: square matrices, reductions by name, evaluation mode
PARTLY = set(
    words(
        "linalg.lu linalg.lu_factor linalg.lu_factor_ex lu lu_unpack linalg.qr qr nn.functional.rrelu "
        "nn.functional.linear_cross_entropy.chunked nn.functional.linear_cross_entropy.chunked_none"
    )
)

# operations that torch's list gives arguments for which its own derivative is another function's
NOT_COMPARED = {
    "cholesky_inverse": "torch's derivative takes the triangle that the value does not read",
    "cholesky_solve": "torch's derivative takes the triangle that the value does not read",
    "linalg.eigh": "torch's derivative takes the triangle that the value does not read",
    "linalg.eigvalsh": "torch's derivative takes the triangle that the value does not read",
    "linalg.norm.subgradients_at_zero": "torch has nan beyond the first derivative",
    "nn.functional.multi_head_attention_forward": "scores in the thousands: both lose digits",
    "masked.logaddexp": "torch has nan beyond the first derivative",
    **dict.fromkeys(
        (f"nn.functional.max_unpool{n}d" for n in (1, 2, 3)), "torch counts each of several values written to one place"
    ),
    **dict.fromkeys(("bfloat16", "half", "chalf", "float", "cfloat"), "rounds"),
}
FIRST_OUTPUT = {"native_layer_norm", "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update"}


def name_of(op):
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


OPERATIONS = {
    name_of(op): op
    for op in op_db
    if op.supports_autograd and F64 in op.supported_dtypes("cpu") and not op.name.startswith("sparse.")
}


# --- references where torch's derivatives are missing or wrong --------------------------------------------------------


def product(x, dim=None, keepdim=False, dtype=None):
    x, axis = (x.flatten(), 0) if dim is None else (x, dim)
    if not x.ndim:
        return x * 1
    found = functools.reduce(torch.mul, x.unbind(axis), torch.ones_like(x.sum(axis)))
    return found.unsqueeze(axis) if keepdim and dim is not None else found


def cumulative_product(x, dim, dtype=None):
    if not x.ndim:
        return x * 1
    pieces = []
    for t in x.unbind(dim):
        pieces.append(t if not pieces else pieces[-1] * t)
    return torch.stack(pieces, dim)


def standardized(x, dims, eps):
    centered = x - x.mean(dims, keepdim=True)
    return centered / ((centered**2).mean(dims, keepdim=True) + eps).sqrt()


def layer_norm(x, shape, weight, bias, eps):
    y = standardized(x, list(range(-len(shape), 0)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def batch_norm(x, weight, bias, mean, var, training, momentum, eps):
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    if training:
        y = standardized(x, [0, *range(2, x.ndim)], eps)
    else:
        y = (x - mean.view(shape)) / (var.view(shape) + eps).sqrt()
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def distances(x, y, p=2.0, compute_mode=None):
    d = x.unsqueeze(-2) - y.unsqueeze(-3)
    return norm(d, p)


def norm(d, p):
    if p == 0:
        return (d.detach() != 0).to(d.dtype).sum(-1)
    if p == math.inf:
        return d.abs().amax(-1)
    total = (d.abs() ** p).sum(-1)
    return torch.where(total == 0, 0.0, torch.where(total == 0, 1.0, total) ** (1 / p))


def own_distances(x, p=2.0):
    i, j = torch.triu_indices(len(x), len(x), 1)
    return norm(x[i] - x[j], p)


def log_of_sums(x, dim):
    if not x.ndim:
        return x * 1
    return torch.stack([x.narrow(dim, 0, i + 1).logsumexp(dim) for i in range(x.shape[dim])], dim)


REFERENCES = {
    "prod": product,
    "cumprod": cumulative_product,
    "native_layer_norm": layer_norm,
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit": batch_norm,
    "_batch_norm_with_update": lambda x, w, b, mean, var, momentum, eps: batch_norm(
        x, w, b, None, None, True, 0.0, eps
    ),
    "cdist": distances,
    "nn.functional.pdist": own_distances,
    "logcumsumexp": log_of_sums,
}


# --- the comparison ---------------------------------------------------------------------------------------------------


def moving(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor) and t.dtype == F64 and t.requires_grad]


def replaced(tree, pieces):
    if isinstance(tree, torch.Tensor):
        return next(pieces) if tree.dtype == F64 and tree.requires_grad else tree
    if type(tree) in (list, tuple):
        return type(tree)(replaced(a, pieces) for a in tree)
    if isinstance(tree, dict):
        return {k: replaced(a, pieces) for k, a in tree.items()}
    return tree


def as_function(call, sample, outputs):
    """The operation as a function of one vector of all entries of all its moving arguments."""
    tree = [sample.input, list(sample.args), sample.kwargs]
    shapes = [p.shape for p in moving(tree)]

    def f(x):
        pieces = [t.reshape(s) for t, s in zip(x.split([s.numel() for s in shapes]), shapes, strict=True)]
        first, args, keywords = replaced(tree, iter(pieces))
        y = call(first, *args, **keywords)
        if sample.output_process_fn_grad is not None and outputs is None:
            y = sample.output_process_fn_grad(y)
        found = [t for t in tree_leaves(y) if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex())]
        found = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in found]
        return found[:outputs]

    return f, torch.cat([p.detach().reshape(-1) for p in moving(tree)])


def samples_of(op, most=SAMPLES):
    torch.manual_seed(0)
    sized = [
        (sum(p.numel() for p in moving([s.input, s.args, s.kwargs])), s)
        for s in op.sample_inputs("cpu", F64, requires_grad=True)
    ]
    small = [s for n, s in sized if 0 < n <= LARGEST][:most]
    return small or [s for n, s in sized if n][:1]


def nested(f, x, v, weights, orders):
    """d^k/dt^k <w, f(x + t v)> for k = 1, ..., orders as far as torch has them."""
    t = torch.zeros((), dtype=F64, requires_grad=True)
    torch.manual_seed(3)
    with Functions(nested=True), sdpa_kernel(SDPBackend.MATH):
        s = sum((y * w).sum() for y, w in zip(f(x + t * v), weights, strict=True))
    found = []
    for _ in range(orders):
        if s.requires_grad:
            try:
                (s,) = torch.autograd.grad(s, t, create_graph=True, allow_unused=True)
            except (RuntimeError, NotImplementedError):  # torch has no higher derivative
                break
            s = torch.zeros((), dtype=F64) if s is None else s
        else:
            s = torch.zeros((), dtype=F64)
        found.append(float(s))
    assert found
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - REFUSED - set(NOT_COMPARED)))
def test_series_equal_nested_autograd_to_order_six(name):
    op = OPERATIONS[name]
    outputs = 1 if name in FIRST_OUTPUT or name in REFERENCES else None
    compared = 0
    for sample in samples_of(op, 20 if name in PARTLY else SAMPLES):
        f, x = as_function(op, sample, outputs)
        v = torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(1)) * 0.3
        try:
            torch.manual_seed(3)
            values, derivatives = jet(f, x, v, ORDER)
        except NotDifferentiable:
            assert name in PARTLY
            continue
        compared += 1
        torch.manual_seed(3)
        plain = f(x)
        weights = [torch.randn(y.shape, dtype=F64, generator=torch.Generator().manual_seed(2)) for y in values]
        reference = as_function(REFERENCES[name], sample, outputs)[0] if name in REFERENCES else f
        expected = nested(reference, x, v, weights, ORDER if compared == 1 else 3)  # nested orders cost exponentially
        for y, z in zip(values, plain, strict=True):
            torch.testing.assert_close(y, z.to(y.dtype), rtol=1e-12, atol=1e-12, equal_nan=True)
        scale = 1.0
        for k, (d, s) in enumerate(zip(derivatives, expected, strict=False), 1):
            assert all(a.shape == w.shape for a, w in zip(d, weights, strict=True))
            terms = [(a * w).double() for a, w in zip(d, weights, strict=True)]
            got, size = sum(float(t.sum()) for t in terms), sum(float(t.abs().sum()) for t in terms)
            if math.isnan(got) and math.isnan(s):
                continue
            scale = max(size, abs(s), scale)  # nested autograd loses digits relative to the lower orders
            assert abs(got - s) <= RTOL * scale, f"order {k}: {got}, nested autograd {s}"
    assert compared


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - set(REFUSED)))
def test_sums_over_directions_are_sums_of_series(name):
    """Two weighted sums of the third coefficients along three lines, and the lower ones of all lines at once."""
    op, sums = OPERATIONS[name], torch.tensor([[1.0, 1.0, 1.0], [0.5, -2.0, 3.0]], dtype=F64)
    for sample in samples_of(op, 1):
        f, x = as_function(op, sample, None)
        V = torch.randn(3, len(x), dtype=F64, generator=torch.Generator().manual_seed(1)) * 0.3
        try:
            torch.manual_seed(3)
            found, _ = propagated(f, x, [V], Frame(3, 3, sums))
        except NotDifferentiable:
            assert name in PARTLY
            continue
        alone = []
        for v in V:
            torch.manual_seed(3)
            alone.append(propagated(f, x, [v[None]], Frame(3, 1))[0])
        for i, c in enumerate(found):
            for k in (1, 2, 3):
                each = [torch.zeros_like(c[0][None]) if a[i][k] is None else a[i][k] for a in alone]
                expected = torch.cat(each)
                expected = torch.tensordot(sums.to(expected.dtype), expected, 1) if k == 3 else expected
                got = torch.zeros_like(expected) if c[k] is None else c[k]
                scale = max((float(e.abs().nan_to_num(0.0).max()) for e in each if e.numel()), default=0.0) + 1e-5
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * scale, equal_nan=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_operation_without_a_rule_is_refused_by_its_name(name):
    op = OPERATIONS[name]
    refused = []
    for sample in samples_of(op):
        f, x = as_function(op, sample, None)
        try:
            jet(f, x, torch.ones_like(x), 2)
        except NotDifferentiable as error:
            refused.append(str(error))
    assert refused
    assert all(told.startswith("jet: ") for told in refused)


def test_most_operations_have_a_rule():
    assert len(set(OPERATIONS) - REFUSED) > 480
