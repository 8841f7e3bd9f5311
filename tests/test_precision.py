"""Parameters in half precision, computed in float32 or float64 at the same point."""

import copy

import pytest
import torch
from torch import nn

from frechet.errors import UnusableObjective
from frechet.objective import Objective, l2
from frechet.objective.criteria import cross_entropy, squared_error
from frechet.operators.derivatives._gauss_newton import empirical_fisher, fisher, gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._jacobian import jacobian, ntk
from laws import block
from objective_cases import labels, randn

X, Y = randn(6, 3).bfloat16(), randn(6, 2, seed=9)
TOKENS = labels(5, 4, 3)


def net(dtype=torch.bfloat16):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2)).eval()
    model[1].running_mean += 0.3
    model[1].running_var *= 1.7
    return model.to(dtype)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cell = nn.Embedding(5, 4), nn.LSTM(4, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 5)
        self.head.weight.requires_grad_(False)

    def forward(self, input_ids, mask):
        return self.head(self.layer(self.cell(self.embed(input_ids))[0] * mask.unsqueeze(-1)))


def pair(model, criterion, data, **keywords):
    """The objective in float32 of a model in half precision, and that of its copy in float32."""
    as_float = [tuple(t.float() if t.is_floating_point() else t for t in b) for b in data if isinstance(b, tuple)]
    as_float += [
        {k: t.float() if t.is_floating_point() else t for k, t in b.items()} for b in data if isinstance(b, dict)
    ]
    return (
        Objective(model, criterion, data, dtype=torch.float32, **keywords),
        Objective(copy.deepcopy(model).float(), criterion, as_float, **keywords),
    )


def token_pair():
    torch.manual_seed(0)
    data = [{"input_ids": TOKENS, "mask": torch.ones(4, 3).bfloat16(), "labels": labels(5, 4, 3, seed=1)}]
    return pair(Tokens().eval().bfloat16(), cross_entropy(), data)


PAIRS = {
    "regression": lambda: pair(net(), squared_error(), [(X, Y.bfloat16())], penalty=l2(0.1)),
    "float16": lambda: pair(net(torch.float16), squared_error(), [(X, Y.float())]),
    "training": lambda: pair(net().train(), squared_error(), [(X, Y.double())]),
    "tokens": token_pair,
}


@pytest.mark.parametrize("name", PAIRS)
def test_everything_agrees_with_a_copy_in_float32_to_the_last_bit(name):
    half, full = PAIRS[name]()
    assert half.space == full.space
    assert half.space.dtype == torch.float32
    assert torch.equal(half.point, full.point)
    assert torch.equal(half.value(), full.value())
    assert torch.equal(half.gradient(), full.gradient())
    v = block(full.space, 2, 1)
    operators = [hessian, gauss_newton, fisher, lambda o: gauss_newton(o, route="reverse")]
    operators += [lambda o: hessian(o, restrict="*bias"), lambda o: hessian(o, 1.1 * full.point)]
    if name != "training":
        operators += [lambda o: empirical_fisher(o, per="example")]
    for make in operators:
        A, B = make(half), make(full)
        V = block(A.domain, 2, 1)
        assert torch.equal(A @ V, B @ V)
    J, K = jacobian(half), jacobian(full)
    U = block(J.codomain, 2, 2)
    assert torch.equal(J @ v, K @ v)
    assert torch.equal(J.T @ U, K.T @ U)
    if name != "training":
        assert torch.equal(ntk(half) @ U, ntk(full) @ U)
    assert half.check().value == full.check().value


def test_the_model_and_its_data_stay_in_half_precision():
    half, _ = PAIRS["training"]()
    before = {k: t.clone() for k, t in half.model.state_dict().items()}
    H = hessian(half)
    v = block(H.domain, 1, 1)
    first = H @ v
    assert {t.dtype for t in half.model.parameters()} == {torch.bfloat16}
    assert half.parts[0].data[0][0].dtype == torch.bfloat16
    assert all(torch.equal(t, before[k]) for k, t in half.model.state_dict().items())
    with torch.no_grad():
        for p in half.model.parameters():
            p += 1.0
    assert torch.equal(H @ v, first)


def test_several_dtypes_meet_in_one():
    model = nn.Sequential(nn.Linear(3, 4).half(), nn.Tanh(), nn.Linear(4, 2).double(), nn.Linear(2, 2).float())
    data = [(X, Y)]
    with pytest.raises(
        TypeError, match=r"'0.weight' is float16, '2.weight' is float64, '3.weight' is float32; pass dty"
    ):
        Objective(model, squared_error(), data)
    for dtype in (torch.float32, torch.float64):
        converted = copy.deepcopy(model).to(dtype)
        H = hessian(Objective(model, squared_error(), data, dtype=dtype))
        v = block(H.domain, 1, 1)
        expected = hessian(Objective(converted, squared_error(), [(X.to(dtype), Y.to(dtype))])) @ v
        assert torch.equal(H @ v, expected)
    (c := 2 * Objective(model, squared_error(), data, dtype=torch.float32)).check()
    assert c.space.dtype == torch.float32


def test_a_float32_model_can_be_looked_at_in_float64():
    model = net(torch.float32)
    exact = Objective(copy.deepcopy(model).double(), squared_error(), [(X.double(), Y)])
    assert torch.equal(
        Objective(model, squared_error(), [(X.float(), Y)], dtype=torch.float64).gradient(), exact.gradient()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.complex64, "float32"])
def test_only_the_two_working_dtypes_are_taken(dtype):
    with pytest.raises(TypeError, match=f"Objective: dtype must be torch.float32 or torch.float64, got {dtype}"):
        Objective(net(), squared_error(), [(X, Y)], dtype=dtype)


# --- what makes half precision by itself ------------------------------------------------------------------------------


class Casting(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.second = how, nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = self.first(x)
        if self.how == "module":
            h = h.bfloat16()
        if self.how == "output":
            return self.second(h).bfloat16()
        if self.how == "inside":
            h = h.bfloat16().tanh().float()
        if self.how == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.second(h).float()
        return self.second(h)


def casting(how):
    return Objective(Casting(how).bfloat16(), squared_error(), [(X, Y)], dtype=torch.float32)


@pytest.mark.parametrize("how", ["module", "output"])
def test_a_hard_coded_cast_is_one_sentence(how):
    sentence = (
        r"batch 0: with dtype=torch.float32 parameters, buffers and inputs have this dtype, but a module or hook mak"
    )
    for ask in (casting(how).value, casting(how).gradient, casting(how).check, lambda: hessian(casting(how)).dense()):
        with pytest.raises(TypeError, match=sentence):
            ask()


@pytest.mark.parametrize("place", [0, 2])
def test_a_hook_that_casts_is_one_sentence(place):
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).bfloat16()
    hook = model[place].register_forward_hook(lambda _m, _i, out: out.bfloat16())
    objective = Objective(model, squared_error(), [(X, Y)], dtype=torch.float32)
    with pytest.raises(TypeError, match="but a module or hook makes another one"):
        hessian(objective).dense()
    hook.remove()
    hessian(objective).dense()


def test_rounding_inside_a_model_is_found_by_the_check_and_by_every_product():
    sentence = r"operation '(ToCopy|Tanh)' runs in torch.bfloat16, though the parameters have torch.float32"
    single = Objective(Casting("inside"), squared_error(), [(X.float(), Y.float())])
    for objective in (casting("inside"), single):
        for ask in (objective.check, objective.gradient, lambda o=objective: gauss_newton(o) @ o.point):
            with pytest.raises(UnusableObjective, match=sentence):
                ask()
    casting("").check()


def test_a_models_own_autocast_changes_no_derivative():
    own, plain = (Casting(how) for how in ("autocast", ""))
    own.load_state_dict(plain.state_dict())
    pair = [Objective(m, squared_error(), [(X.float(), Y.float())]) for m in (own, plain)]
    v = block(pair[0].space, 1, 1)
    for make in (hessian, gauss_newton):
        assert torch.equal(make(pair[0]) @ v, make(pair[1]) @ v)
    assert torch.equal(pair[0].value(), pair[1].value())
    pair[0].check()


def test_autocast_around_a_product_changes_nothing():
    half, full = PAIRS["regression"]()
    v = block(full.space, 1, 1)
    expected = hessian(full) @ v
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hessian(half) @ v, expected)
        assert torch.equal(half.value(), full.value())
