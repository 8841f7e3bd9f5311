import copy
import warnings

import pytest
import torch
from torch import nn

import train_worker
from frechet import Objective, cross_entropy, identity
from frechet.operators import inverse
from frechet.operators.derivatives import kfac
from frechet.train import KFAC
from ranks import on_ranks

F64 = torch.float64


class Twice(nn.Module):
    """A layer that is called two times in each pass."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))


def network(name="mlp"):
    torch.manual_seed(0)
    if name == "twice":
        return Twice().double()
    if name == "mlp":
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    return nn.Sequential(
        nn.Conv2d(2, 4, 2, groups=2, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3)
    ).double()


def data(name="mlp", n=12):
    g = torch.Generator().manual_seed(1)
    shape = (n, 2, 4, 4) if name == "convolutions" else (n, 6)
    return torch.randn(shape, generator=g, dtype=F64), torch.randint(0, 3, (n,), generator=g)


def loss_of(model, X, y):
    return nn.functional.cross_entropy(model(X), y)


def train(model, optimizer, X, y, steps, scheduler=None):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, X, y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize("name", ["mlp", "convolutions", "twice"])
def test_the_first_step_is_the_damped_natural_gradient_of_the_operator(name):
    model, (X, y) = network(name), data(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    layers = [n for n in before if not n.startswith("3.")]
    objective = Objective(model, cross_entropy(), [(X, y)])
    A = kfac(objective, kind="empirical_fisher", restrict=layers)
    g = objective.gradient()[objective.space.indices(A.domain)]
    expected = A.domain.unflatten(inverse(A + 1e-2 * identity(A.domain)) @ g)
    optimizer = KFAC(model, lr=0.3, momentum=0.0, damping=1e-2, clip=float("inf"))
    train(model, optimizer, X, y, 1)
    for n in layers:
        torch.testing.assert_close(
            before[n] - model.get_parameter(n).detach(), 0.3 * expected[n], rtol=1e-8, atol=1e-12
        )


@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_microbatches_add_up_to_one_batch(pieces):
    X, y = data()
    whole, split = network(), network()
    optimizers = [KFAC(m, lr=0.1) for m in (whole, split)]
    for _ in range(3):
        optimizers[0].zero_grad()
        loss_of(whole, X, y).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        for a, b in zip(X.chunk(pieces), y.chunk(pieces), strict=True):
            (loss_of(split, a, b) / pieces).backward()
        optimizers[1].step()
    for p, q in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_run_that_resumes_goes_on_to_the_last_bit(dtype, stop):
    X, y = data("convolutions")
    X = X.to(dtype)
    model = network("convolutions").to(dtype)
    optimizer = KFAC(model, lr=0.05, refresh=3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    train(model, optimizer, X, y, stop, scheduler)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    train(model, optimizer, X, y, 5, scheduler)
    other = network("convolutions").to(dtype)
    again = KFAC(other, lr=0.05, refresh=3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(again, 0.9)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    schedule.load_state_dict(saved[2])
    train(other, again, X, y, 5, schedule)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_badly_scaled_regression_needs_far_fewer_steps_than_adam():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(200, 8, generator=g, dtype=F64) * torch.logspace(0, -2, 8, dtype=F64)
    y = X @ torch.logspace(0, 2, 8, dtype=F64)[:, None]

    def run(made, most=400):
        torch.manual_seed(1)
        model = nn.Linear(8, 1).double()
        optimizer = made(model)
        for step in range(most):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(X), y)
            loss.backward()
            optimizer.step()
            if loss.item() < 1e-4:
                return step
        return most

    ours = run(lambda m: KFAC(m, lr=0.5, momentum=0.0, damping=1e-8, clip=float("inf"), refresh=1))
    theirs = min(run(lambda m, lr=lr: torch.optim.Adam(m.parameters(), lr=lr)) for lr in (0.01, 0.1, 1.0))
    assert ours <= theirs / 2


def test_hooks_record_training_passes_alone():
    model, (X, y) = network(), data()
    optimizer = KFAC(model)
    model.eval()
    loss_of(model, X, y).backward()
    model.train()
    with torch.no_grad():
        model(X)
    loss_of(model, X, y)  # no backward pass
    assert all(s.A is None for s in optimizer._seen)
    loss_of(model, X, y).backward()
    assert all(s.examples == 12 for s in optimizer._seen)
    model.zero_grad()
    optimizer.step()
    assert all(s.A is None for s in optimizer._seen)
    optimizer.remove_hooks()
    loss_of(model, X, y).backward()
    assert all(s.A is None for s in optimizer._seen)


def test_a_gradient_that_is_not_finite_changes_nothing():
    model, (X, y) = network("convolutions"), data("convolutions")
    optimizer = KFAC(model)
    train(model, optimizer, X, y, 2)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, X * float("nan"), y, 1)
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)
    train(model, optimizer, X, y, 1)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert not torch.equal(next(iter(model.parameters())), before[0])


def test_shared_and_other_parameters_take_steps_of_adamw():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, tokens):
            return self.head(torch.tanh(self.mix(self.embed(tokens))) * self.scale)

    torch.manual_seed(0)
    model = Tied().double()
    twin = copy.deepcopy(model)
    optimizer = KFAC(model, rest_lr=1e-2, weight_decay=0.1)
    sizes = [sum(p.numel() for p in g["params"]) for g in optimizer.param_groups]
    assert sizes == [20, 24]
    reference = torch.optim.AdamW([twin.embed.weight, twin.scale], lr=1e-2, weight_decay=0.1)
    tokens = torch.arange(5)
    for m, o in ((model, optimizer), (twin, reference)):
        o.zero_grad()
        nn.functional.cross_entropy(m(tokens), tokens).backward()
        o.step()
    torch.testing.assert_close(model.embed.weight, twin.embed.weight)
    torch.testing.assert_close(model.scale, twin.scale)


def test_a_closure_and_checkpoints_are_served():
    X, y = data()
    plain, kept = network(), network()
    optimizers = [KFAC(m) for m in (plain, kept)]

    def closure():
        optimizers[0].zero_grad()
        loss = loss_of(plain, X, y)
        loss.backward()
        return loss

    for _ in range(3):
        loss = optimizers[0].step(closure)
        optimizers[1].zero_grad()
        h = torch.utils.checkpoint.checkpoint(kept, X, use_reentrant=False)
        nn.functional.cross_entropy(h, y).backward()
        optimizers[1].step()
    assert loss.item() > 0
    for p, q in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_gradient_scaler_is_refused():
    model, (X, y) = network().float(), data()
    optimizer = KFAC(model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, X.float(), y)).backward()
    with pytest.raises(ValueError, match=r"KFAC: slopes must not be scaled by a GradScaler.*train in bfloat16"):
        scaler.step(optimizer)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": -1.0}, "KFAC: lr must be a number >= 0, got -1.0"),
        ({"damping": 0.0}, "KFAC: damping must be a number > 0, got 0.0"),
        ({"clip": 0.0}, "KFAC: clip must be a number > 0, got 0.0"),
        ({"momentum": 1.0}, r"KFAC: momentum, decay and betas must lie in \[0, 1\)"),
        ({"refresh": 0}, "KFAC: refresh must be an int >= 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        KFAC(network(), **options)
    with pytest.raises(ValueError, match="KFAC: the model must have a parameter that requires a gradient, got none"):
        KFAC(network().requires_grad_(False))


def test_a_trainer_of_transformers_resumes_to_the_last_bit(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    g = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 20, (9,), generator=g) for _ in range(16)]
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )

    def trained(resume):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        arguments = transformers.TrainingArguments(
            str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=4, save_steps=2,
            report_to=[], disable_tqdm=True, use_cpu=True, seed=1, logging_strategy="no",
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in rows]
        trainer = transformers.Trainer(model, arguments, train_dataset=data, optimizers=(KFAC(model), None))
        trainer.train(resume_from_checkpoint=resume)
        return [p.detach().clone() for p in model.parameters()]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the trainer itself
        whole, resumed = trained(None), trained(str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))


def test_two_processes_take_the_steps_of_one(tmp_path):
    alone = train_worker.trained("KFAC", False, slice(None))
    for result in on_ranks("train_worker", tmp_path):
        for p, q in zip(result["KFAC"], alone, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
