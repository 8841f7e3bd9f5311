"""K-FAC against factors from loops over single examples, and against dense Fisher matrices where it is exact."""

import pytest
import torch
from torch import nn

from frechet import (
    Objective,
    causal_lm,
    check_operator,
    cross_entropy,
    diagonal,
    empirical_fisher,
    fisher,
    gauss_newton,
    identity,
    log_determinant,
    squared_error,
    trace,
)
from frechet.errors import UnusableObjective
from frechet.linalg import frobenius_norm
from frechet.objective.criteria import poisson
from frechet.operators import inverse, square_root
from frechet.operators.derivatives import kfac

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class Tokens(nn.Module):
    """Embedding, a mixer of positions, a norm and a head per token; "mean" averages over positions before the head."""

    def __init__(self, mean=False, classes=3):
        super().__init__()
        self.embed, self.mix, self.norm = nn.Embedding(7, 4), nn.Linear(4, 5), nn.LayerNorm(5)
        self.head, self.mean = nn.Linear(5, classes), mean

    def forward(self, tokens):
        h = self.norm(torch.tanh(self.mix(self.embed(tokens))))
        return self.head(h.mean(1) if self.mean else h)


def network(name):
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    labels = torch.randint(0, 3, (6,), generator=g)
    if name == "mlp":
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))
        return model, cross_entropy(), (torch.randn(6, 4, generator=g, dtype=F64), labels)
    if name == "regression":
        model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2))
        return (
            model,
            squared_error(),
            (torch.randn(6, 4, generator=g, dtype=F64), torch.randn(6, 2, generator=g, dtype=F64)),
        )
    if name == "poisson":
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        return model, poisson(), (torch.randn(6, 4, generator=g, dtype=F64), torch.ones(6, 2, dtype=F64))
    if name == "convolution":
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Tanh(),
            nn.Conv2d(4, 4, (2, 3), groups=2, dilation=(1, 2), padding=(0, 2)),
            nn.Flatten(), nn.Linear(24, 3),
        )  # fmt: skip
        return model, cross_entropy(), (torch.randn(6, 2, 5, 6, generator=g, dtype=F64), labels)
    if name == "padding modes":
        model = nn.Sequential(
            nn.Conv1d(2, 3, 3, padding="same", padding_mode="circular"), nn.Tanh(), nn.Conv1d(3, 2, 2, padding="same"),
            nn.Flatten(), nn.Linear(14, 3),
        )  # fmt: skip
        return model, cross_entropy(), (torch.randn(6, 2, 7, generator=g, dtype=F64), labels)
    if name == "norms":
        model = nn.Sequential(
            nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.BatchNorm2d(4).eval(), nn.Flatten(), nn.RMSNorm(16),
            nn.Linear(16, 3),
        )  # fmt: skip
        model[3].running_mean.normal_()
        return model, cross_entropy(), (torch.randn(6, 2, 3, 3, generator=g, dtype=F64), labels)
    tokens = torch.randint(0, 7, (6, 4), generator=g)
    if name == "tokens":
        return Tokens(), cross_entropy(), (tokens, torch.randint(0, 3, (6, 4), generator=g))
    return Tokens(mean=True), cross_entropy(), (tokens, labels)


NETWORKS = ["mlp", "regression", "poisson", "convolution", "padding modes", "norms", "tokens", "tokens, mean"]


def objective_of(name, batches=1):
    model, criterion, (X, y) = network(name)
    model = model.double()
    size = len(X) // batches
    data = [(X[i : i + size], y[i : i + size]) for i in range(0, len(X), size)]
    return Objective(model, criterion, data), model


def rows_of_input(module, a):
    """Rows (t, groups, in) of one example, by torch's own unfold."""
    if isinstance(module, nn.Linear):
        rows = a.reshape(-1, 1, a.shape[-1])
    elif isinstance(module, nn.Embedding):
        return a.reshape(-1)
    else:
        dims = a.ndim - 2
        if isinstance(module.padding, str):
            mode = {"zeros": "constant"}.get(module.padding_mode, module.padding_mode)
            a, pad = nn.functional.pad(a, module._reversed_padding_repeated_twice, mode=mode), 0
        else:
            pad = module.padding
        if dims == 1:
            a, pad = a.unsqueeze(2), (0, pad if isinstance(pad, int) else pad[0])
        kernel, stride, dilation = (
            (1, *p) if dims == 1 else p for p in (module.kernel_size, module.stride, module.dilation)
        )
        cols = nn.functional.unfold(a, kernel, dilation, pad, stride)[0].T
        rows = cols.reshape(len(cols), module.groups, -1)
    return rows if module.bias is None else torch.cat([rows, torch.ones(*rows.shape[:2], 1, dtype=rows.dtype)], 2)


def factors_by_loops(objective, model, kind, sharing):
    """{module: (A, B, exact block)} from single examples, hooks and torch's own Hessian of the loss."""
    modules = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding)]
    found = {m: [[], [], []] for m in modules}
    count = 0.0
    part = objective.parts[0]
    for X, y in objective.data if hasattr(objective, "data") else part.data:
        for i in range(len(X)):
            seen = {}
            handles = [
                m.register_forward_hook(lambda m, a, out, seen=seen: seen.__setitem__(m, (a[0].detach(), out)))
                for m in modules
            ]
            out = model(X[i : i + 1])
            for h in handles:
                h.remove()
            target, flat = y[i : i + 1], out.detach()
            count += float(part.criterion.count(target))
            total = lambda z, target=target, shape=flat.shape: part.criterion.terms(z.view(shape), target).sum()  # noqa: E731
            if kind == "empirical_fisher":
                columns = torch.func.grad(total)(flat.reshape(-1)).unsqueeze(1)
            else:
                H = torch.func.hessian(total)(flat.reshape(-1))
                values, vectors = torch.linalg.eigh(H)
                columns = vectors * values.clamp_min(0).sqrt()
            for u in columns.T:
                slopes = torch.autograd.grad(out, [seen[m][1] for m in modules], u.view(out.shape), retain_graph=True)
                for m, b in zip(modules, slopes, strict=True):
                    groups = getattr(m, "groups", 1)
                    conv = isinstance(m, nn.Conv1d | nn.Conv2d)
                    rows = (
                        b[0].reshape(groups, b.shape[1] // groups, -1).permute(2, 0, 1)
                        if conv
                        else b.reshape(-1, 1, b.shape[-1])
                    )
                    inputs = rows_of_input(m, seen[m][0])
                    if isinstance(m, nn.Embedding):
                        G = torch.zeros(m.num_embeddings, m.embedding_dim, dtype=F64).index_add(0, inputs, rows[:, 0])
                        found[m][2].append(G.reshape(1, -1))
                    else:
                        found[m][2].append(torch.einsum("tgo,tgi->goi", rows, inputs).reshape(groups, -1))
                    reduce = sharing == "reduce" and not isinstance(m, nn.Embedding)
                    rows = rows.sum(0, keepdim=True) if reduce else rows
                    found[m][1].append(torch.einsum("tgo,tgp->gop", rows, rows))
            for m in modules:
                inputs = rows_of_input(m, seen[m][0])
                if sharing == "reduce" and not isinstance(m, nn.Embedding):
                    inputs = inputs.mean(0, keepdim=True)
                found[m][0].append(inputs)
    scale = len(X) * len(part.data) / count**2 if kind == "empirical_fisher" else 1 / count
    out = {}
    for m, (inputs, outer, gradients) in found.items():
        a = torch.cat(inputs)
        if isinstance(m, nn.Embedding):
            A = torch.bincount(a, minlength=m.num_embeddings).double() / len(a)
        else:
            A = torch.einsum("tgi,tgj->gij", a, a) / len(a)
        B, g = torch.stack(outer).sum(0) * scale, torch.stack(gradients)
        out[m] = A, B, torch.einsum("kgi,kgj->gij", g, g) * scale
    return out


def names_of(model, module):
    own = {id(p): n for n, p in model.named_parameters()}
    return tuple(own[id(p)] for p in (module.weight, getattr(module, "bias", None)) if p is not None)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", ["fisher", "gauss_newton", "empirical_fisher"])
@pytest.mark.parametrize("name", NETWORKS)
def test_factors_are_those_of_loops_over_examples(name, kind, sharing):
    objective, model = objective_of(name)
    found = {f.names: f for f in kfac(objective, kind=kind, sharing=sharing).layers}
    for module, (A, B, _) in factors_by_loops(objective, model, kind, sharing).items():
        ours = found[names_of(model, module)]
        torch.testing.assert_close(ours.inputs, A, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(ours.outputs, B, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", ["fisher", "gauss_newton", "empirical_fisher"])
@pytest.mark.parametrize("name", NETWORKS)
def test_corrected_blocks_have_the_exact_trace_and_the_exact_diagonal_in_their_basis(name, kind):
    objective, _ = objective_of(name)
    A = kfac(objective, kind=kind, corrected=True)
    exact = {
        "fisher": fisher, "gauss_newton": gauss_newton, "empirical_fisher": lambda o: empirical_fisher(o, per="example")
    }[kind](objective).dense()  # fmt: skip
    assert trace(A, seed=0).value == pytest.approx(float(exact.trace()), rel=1e-10)
    for names in names_and_blocks(A):
        at = torch.cat([torch.arange(A.domain.dim)[A.domain.block(n)] for n in names])
        assert float(A.dense()[at][:, at].trace()) == pytest.approx(float(exact[at][:, at].trace()), rel=1e-9)


def names_and_blocks(A):
    return [f.names for f in A.layers]


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("name", ["mlp", "regression"])
def test_one_example_with_one_drawn_label_is_exact_block_by_block(name, corrected):
    model, criterion, (X, y) = network(name)
    objective = Objective(model.double(), criterion, [(X[:1], y[:1])])
    A = kfac(objective, kind="empirical_fisher", corrected=corrected)
    exact = empirical_fisher(objective, per="example").dense()
    for names in names_and_blocks(A):
        at = torch.cat([torch.arange(A.domain.dim)[A.domain.block(n)] for n in names])
        torch.testing.assert_close(A.dense()[at][:, at], exact[at][:, at], rtol=1e-12, atol=1e-14)


def test_a_linear_model_with_squared_error_is_exact():
    g = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2).double()
    objective = Objective(
        model, squared_error(), [(torch.randn(9, 3, generator=g, dtype=F64), torch.zeros(9, 2, dtype=F64))]
    )
    torch.testing.assert_close(kfac(objective).dense(), fisher(objective).dense())
    torch.testing.assert_close(kfac(objective, kind="gauss_newton").dense(), gauss_newton(objective).dense())


# in "reduce" the factor of the inputs has null vectors, whose choice is free, where gradients are not zero
@pytest.mark.parametrize(("sharing", "corrected"), [("expand", False), ("expand", True), ("reduce", False)])
@pytest.mark.parametrize("name", NETWORKS)
def test_batches_do_not_change_the_operator(name, sharing, corrected):
    whole, split = (kfac(objective_of(name, k)[0], sharing=sharing, corrected=corrected).dense() for k in (1, 3))
    torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_a_symmetric_operator_with_closed_forms(name, corrected):
    A = kfac(objective_of(name)[0], corrected=corrected)
    check_operator(A, seed=0).checked()
    dense = A.dense()
    torch.testing.assert_close(dense, dense.T)
    torch.testing.assert_close(diagonal(A, seed=0).value, dense.diagonal(), rtol=1e-7, atol=1e-10)
    assert float(trace(A, seed=0).value) == pytest.approx(float(dense.trace()))
    assert float(frobenius_norm(A, seed=0).value) == pytest.approx(float(dense.norm()), rel=1e-6)
    damped = A + 0.1 * identity(A.domain)
    M = dense + 0.1 * torch.eye(len(dense), dtype=F64)
    torch.testing.assert_close(inverse(damped).dense(), torch.linalg.inv(M), rtol=1e-8, atol=1e-9)
    root = square_root(damped)
    torch.testing.assert_close((root @ root).dense(), M, rtol=1e-8, atol=1e-9)
    assert float(log_determinant(damped, seed=0).value) == pytest.approx(float(torch.logdet(M)), rel=1e-9)


def test_drawn_labels_have_the_mean_of_the_exact_fisher():
    objective, _ = objective_of("mlp")
    exact = kfac(objective).layers
    drawn = kfac(objective, seed=0, samples=3000).layers
    for e, d in zip(exact, drawn, strict=True):
        torch.testing.assert_close(d.inputs, e.inputs)
        assert float((d.outputs - e.outputs).abs().max()) <= 0.1 * float(e.outputs.abs().max())
    again, other = kfac(objective, seed=0).dense(), kfac(objective, seed=1).dense()
    assert torch.equal(kfac(objective, seed=0).dense(), again)
    assert not torch.equal(again, other)


def test_drawn_labels_do_not_depend_on_the_batches():
    whole, split = (kfac(objective_of("mlp", k)[0], seed=0, samples=2).dense() for k in (1, 2))
    torch.testing.assert_close(split, whole)


class Masked(nn.Module):
    """A classifier of sequences whose padding is masked."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, input_ids, attention_mask):
        h = torch.tanh(self.mix(self.embed(input_ids))) * attention_mask.unsqueeze(2)
        return self.head(h.sum(1) / attention_mask.sum(1, keepdim=True))


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("corrected", [False, True])
def test_padding_does_not_change_the_operator(sharing, corrected):
    torch.manual_seed(0)
    model, lengths = Masked().double(), [2, 5, 3, 4]
    rows = [torch.randint(1, 7, (n,)) for n in lengths]
    labels = torch.randint(0, 3, (4,))
    ragged = [
        ({"input_ids": r[None], "attention_mask": torch.ones(1, len(r), dtype=F64)}, labels[i : i + 1])
        for i, r in enumerate(rows)
    ]
    ids, mask = torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9, dtype=F64)
    for i, r in enumerate(rows):
        ids[i, : len(r)], mask[i, : len(r)] = r, 1.0
    padded = [({"input_ids": ids, "attention_mask": mask}, labels)]
    found = [
        kfac(Objective(model, cross_entropy(), d), sharing=sharing, corrected=corrected).dense()
        for d in (ragged, padded)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("name", ["mlp", "convolution", "tokens"])
def test_weight_and_bias_may_be_two_blocks(name, corrected):
    objective, _ = objective_of(name)
    apart, together = (kfac(objective, joint=joint, corrected=corrected) for joint in (False, True))
    assert all(len(f.names) == 1 or f.diagonal is not None for f in apart.layers)
    if not corrected:  # the diagonal blocks of B kron A
        for f in apart.layers:
            at = torch.cat([torch.arange(apart.domain.dim)[apart.domain.block(n)] for n in f.names])
            torch.testing.assert_close(apart.dense()[at][:, at], together.dense()[at][:, at])
    assert float(trace(apart, seed=0).value) == pytest.approx(float(trace(together, seed=0).value))


def test_forward_only_has_inputs_alone():
    objective, _ = objective_of("mlp")
    for f, g in zip(kfac(objective, kind="forward_only").layers, kfac(objective).layers, strict=True):
        torch.testing.assert_close(f.inputs, g.inputs)
        assert torch.equal(f.outputs[0], torch.eye(len(f.outputs[0]), dtype=F64))
    with pytest.raises(ValueError, match="kfac: corrected needs slopes, got kind='forward_only'"):
        kfac(objective, kind="forward_only", corrected=True)


def test_restrict_keeps_the_blocks_of_its_layers():
    objective, _ = objective_of("mlp")
    whole = kfac(objective)
    part = kfac(objective, restrict="0.*")
    at = torch.cat([torch.arange(whole.domain.dim)[whole.domain.block(n)] for n in ("0.weight", "0.bias")])
    torch.testing.assert_close(part.dense(), whole.dense()[at][:, at])
    bias = kfac(objective, restrict="0.bias").dense()
    torch.testing.assert_close(bias, whole.layers[0].outputs[0])


def test_a_factor_on_the_objective_and_several_objectives():
    objective, _ = objective_of("mlp")
    torch.testing.assert_close(kfac(3.0 * objective).dense(), 3.0 * kfac(objective).dense())
    empirical = [kfac(o, kind="empirical_fisher").dense() for o in (objective, 3.0 * objective)]
    torch.testing.assert_close(empirical[1], 9.0 * empirical[0])


def test_a_module_called_twice_is_one_layer_with_more_rows():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))

    torch.manual_seed(0)
    objective = Objective(
        Twice().double(), squared_error(), [(torch.randn(5, 3, dtype=F64), torch.zeros(5, 2, dtype=F64))]
    )
    A = kfac(objective, corrected=True)
    at = torch.cat([torch.arange(A.domain.dim)[A.domain.block(n)] for n in ("a.weight", "a.bias")])
    exact = fisher(objective).dense()[at][:, at]
    assert float(A.dense()[at][:, at].trace()) == pytest.approx(float(exact.trace()))


def test_layers_that_overwrite_their_outputs_are_served():
    torch.manual_seed(0)
    X, y = torch.randn(6, 4, dtype=F64), torch.randint(0, 3, (6,))
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    inplace = nn.Sequential(plain[0], nn.ReLU(inplace=True), plain[2])
    found = [kfac(Objective(m, cross_entropy(), [(X, y)])).dense() for m in (plain, inplace)]
    torch.testing.assert_close(found[1], found[0])


class Outside(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.a, self.how = nn.Linear(4, 4), how
        if how == "parameter":
            self.scale = nn.Parameter(torch.ones(4))
        if how == "tied":
            self.embed, self.a = nn.Embedding(4, 4), nn.Linear(4, 4, bias=False)
            self.a.weight = self.embed.weight

    def forward(self, x):
        if self.how == "parameter":
            return self.a(x) * self.scale
        if self.how == "weight":
            return self.a(x) @ self.a.weight
        if self.how == "rows":
            return self.a(x.reshape(-1, 2, 4)).reshape(-1, 4)
        return self.a(self.embed(x.abs().long().clamp_max(3)).sum(1))


@pytest.mark.parametrize("how", ["parameter", "weight", "rows", "tied"])
def test_what_has_no_such_block_has_its_exact_diagonal_or_is_refused(how):
    torch.manual_seed(0)
    data = [(torch.randn(6, 4, dtype=F64), torch.zeros(6, 4, dtype=F64))]
    objective = Objective(Outside(how).double(), squared_error(), data)
    sentence = {
        "parameter": r"kfac: parameters must belong to Linear, .*got \['scale'\]; leave them out",
        "weight": r"kfac: parameters must be used in their layer alone, got \['a.weight', 'a.bias'\]",
        "rows": r"kfac: the first axis of what goes into a layer must be the batch, got \['a.weight', 'a.bias'\]",
        "tied": r"kfac: parameters must belong to Linear, .*got \['a.weight'\]",
    }[how]
    with pytest.raises(UnusableObjective, match=sentence):
        kfac(objective, others="refuse")
    A, exact = kfac(objective), fisher(objective).dense()
    alone = [f for f in A.layers if f.diagonal is not None]
    assert alone
    for f in alone:
        at = torch.arange(A.domain.dim)[A.domain.block(f.names[0])]
        torch.testing.assert_close(f.diagonal, exact.diagonal()[at])
        torch.testing.assert_close(A.dense()[at][:, at], torch.diag(exact.diagonal()[at]))
    if how == "parameter":
        assert kfac(objective, restrict="a.*", others="refuse").domain.dim == 20


class Branching(nn.Module):
    """Uses a weight outside of its layer where the inputs are large: in the second batch."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x)
        return y @ self.a.weight if float(x.detach().mean()) > 1 else y


def test_a_weight_that_a_later_batch_uses_elsewhere_is_noticed():
    torch.manual_seed(0)
    X, y = torch.randn(8, 4, dtype=F64), torch.zeros(8, 4, dtype=F64)
    objective = Objective(Branching().double(), squared_error(), [(X[:4], y[:4]), (X[4:] + 5, y[4:])])
    with pytest.raises(UnusableObjective, match="kfac: parameters must be used in their layer alone"):
        kfac(objective, others="refuse")
    torch.testing.assert_close(kfac(objective).dense().diagonal(), fisher(objective).dense().diagonal())


@pytest.mark.parametrize("corrected", [False, True])
def test_the_padding_token_of_an_embedding_has_no_block_and_does_not_count(corrected):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=2), nn.Flatten(), nn.Linear(12, 2)).double()
    tokens = torch.tensor([[0, 2, 1, 2], [4, 4, 2, 3], [2, 2, 0, 1]])
    objective = Objective(model, cross_entropy(), [(tokens, torch.tensor([0, 1, 1]))])
    A = kfac(objective, corrected=corrected)
    counts = torch.tensor([2.0, 2.0, 0.0, 1.0, 2.0], dtype=F64)
    torch.testing.assert_close(A.layers[0].inputs, counts / counts.sum())
    exact, at = fisher(objective).dense(), torch.arange(15)
    assert float(A.dense()[at][:, at].diagonal()[6:9].abs().max()) == 0
    if corrected:
        torch.testing.assert_close(A.dense()[at][:, at].trace(), exact[at][:, at].trace())


def transformer(name):
    """Small models of transformers, with a split of their batches."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"vocab_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 4}
    ids, labels = torch.randint(0, 12, (3, 4)), torch.tensor([0, 1, 1])
    if name == "bert":
        config = transformers.BertConfig(**small, intermediate_size=4, max_position_embeddings=4, num_labels=2)
        mask = torch.ones(3, 4, dtype=torch.long)
        mask[1, 3:] = 0
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return transformers.BertForSequenceClassification(config), batch, None
    if name == "llama":
        config = transformers.LlamaConfig(**small, intermediate_size=4)
        return transformers.LlamaForCausalLM(config), {"input_ids": ids}, causal_lm
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=12, n_embd=4, n_layer=1, n_head=2, n_positions=4, bos_token_id=0, eos_token_id=0
        )
        return transformers.GPT2LMHeadModel(config), {"input_ids": ids}, causal_lm
    del small["vocab_size"]
    config = transformers.ViTConfig(**small, intermediate_size=4, image_size=4, patch_size=2, num_labels=2)
    batch = {"pixel_values": torch.randn(3, 3, 4, 4, dtype=F64), "labels": labels}
    return transformers.ViTForImageClassification(config), batch, None


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit"])
def test_every_parameter_of_a_transformer_has_the_exact_trace_of_its_block(name):
    model, batch, split = transformer(name)
    options = {} if split is None else {"split": split}
    objective = Objective(model.double().eval(), cross_entropy(), [batch], **options)
    A, F = kfac(objective, corrected=True), fisher(objective)
    exact = diagonal(F, method="exact", seed=0).value
    ours = diagonal(A, seed=0, method="exact").value
    kinds = {"factors": 0, "diagonal": 0}
    for f in A.layers:
        at = torch.cat([torch.arange(A.domain.dim)[A.domain.block(n)] for n in f.names])
        # parts of these models compute in float32 whatever their parameters are
        assert float(ours[at].sum()) == pytest.approx(float(exact[at].sum()), rel=1e-6)
        kinds["factors" if f.diagonal is None else "diagonal"] += len(at)
    assert kinds["factors"] > kinds["diagonal"]


def test_wrong_arguments_are_named():
    objective, _ = objective_of("mlp")
    for arguments, sentence in (
        (
            {"kind": "hessian"},
            "kind must be one of 'fisher', 'gauss_newton', 'empirical_fisher', 'forward_only', got 'hessian'",
        ),
        ({"sharing": "sum"}, "sharing must be 'expand' or 'reduce', got 'sum'"),
        ({"samples": 2}, "samples must be at least 1, and 1 without a seed, got 2 with seed=None"),
        ({"kind": "gauss_newton", "seed": 0}, "labels are drawn for kind='fisher' alone, got seed=0"),
    ):
        with pytest.raises(ValueError, match=f"kfac: {sentence}"):
            kfac(objective, **arguments)
    with pytest.raises(TypeError, match="kfac: objective must be an Objective, got int"):
        kfac(3)
    wide = Objective(
        nn.Linear(2, 1100).double(), squared_error(), [(torch.ones(2, 2, dtype=F64), torch.ones(2, 1100, dtype=F64))]
    )
    with pytest.raises(ValueError, match="an example must have at most 1024 outputs, got 1100"):
        kfac(wide)
    assert kfac(wide, seed=0).domain.dim == 3300
