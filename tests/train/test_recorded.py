"""The optimizers on an objective in the loops that people write."""

import copy
import warnings

import pytest
import torch
from torch import nn

import train_worker
from frechet import Objective, causal_lm, cross_entropy
from frechet.train import AdaHessian, GaussNewton
from ranks import on_ranks

F64 = torch.float64


def network(dtype=F64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def data(n=40, dtype=F64):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 6, generator=g, dtype=F64).to(dtype), torch.randint(0, 3, (n,), generator=g)


MADE = {
    "gauss-newton": lambda m, loss, **options: GaussNewton(m, loss, damping=0.1, solver="cg", **options),
    "gauss-newton, gram": lambda m, loss, **options: GaussNewton(m, loss, damping=0.1, solver="gram", **options),
    "adahessian": lambda m, loss, **options: AdaHessian(m, loss, seed=0, every=2, **{"lr": 0.05, **options}),
}


def by_batch(m, o, loss, X, y):
    o.step((X, y))


def by_objective(m, o, loss, X, y):
    o.step(Objective(m, loss, [(X, y)]))


def by_recording(m, o, loss, X, y):
    o.zero_grad()
    with o.record((X, y)):
        nn.functional.cross_entropy(m(X), y).backward()
    o.step()


def by_hooks(m, o, loss, X, y):
    o.zero_grad()
    loss(m(X), y).backward()
    o.step()


def by_hooks_late(m, o, loss, X, y):
    """As tutorials write it: gradients are cleared between the forward and the backward pass."""
    value = loss(m(X), y)
    o.zero_grad()
    value.backward()
    o.step()


def by_closure(m, o, loss, X, y):
    def closure():
        o.zero_grad()
        value = loss(m(X), y)
        value.backward()
        return value

    assert o.step(closure) is not None


def by_accumulation(m, o, loss, X, y):
    for a, b in zip(X.chunk(4), y.chunk(4), strict=True):
        (loss(m(a), b) / 4).backward()
    o.step()
    o.zero_grad()


def by_recorded_accumulation(m, o, loss, X, y):
    for a, b in zip(X.chunk(4), y.chunk(4), strict=True):
        with o.record((a, b)):
            (nn.functional.cross_entropy(m(a), b) / 4).backward()
    o.step()
    o.zero_grad()


def among_other_passes(m, o, loss, X, y):
    o.zero_grad()
    m.eval()
    loss(m(X[:3]), y[:3]).backward()  # evaluation
    m.zero_grad()
    m.train()
    loss(m(X[:5]), y[:5])  # no backward pass
    with torch.no_grad():
        loss(m(X[:6]), y[:6])
    loss(m(X), y).backward()
    o.step()


LOOPS = [by_batch, by_objective, by_recording, by_hooks, by_hooks_late, by_closure, by_accumulation,
         by_recorded_accumulation, among_other_passes]  # fmt: skip


def train(loop, made, steps=3, dtype=F64, **options):
    m, loss = network(dtype), nn.CrossEntropyLoss()
    o = made(m, loss, **options)
    for _ in range(steps):
        loop(m, o, loss, *data(dtype=dtype))
    return m, o


@pytest.mark.parametrize("name", list(MADE))
@pytest.mark.parametrize("loop", LOOPS[1:])
def test_every_loop_takes_the_same_steps(name, loop):
    m, _ = train(loop, MADE[name])
    expected, _ = train(by_batch, MADE[name])
    for p, q in zip(m.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)
    assert not torch.equal(p, network()[2].bias)


@pytest.mark.parametrize("name", list(MADE))
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_run_that_resumes_goes_on_to_the_last_bit(name, dtype, stop):
    def begun():
        m, loss = network(dtype), nn.CrossEntropyLoss()
        o = MADE[name](m, loss, weight_decay=0.01)
        return m, loss, o, torch.optim.lr_scheduler.ExponentialLR(o, 0.9)

    def go(m, loss, o, schedule, steps):
        for i in range(steps):
            X, y = data(20, dtype)
            by_hooks(m, o, loss, X[i % 3 :], y[i % 3 :])
            schedule.step()

    m, loss, o, schedule = begun()
    go(m, loss, o, schedule, stop)
    saved = copy.deepcopy((m.state_dict(), o.state_dict(), schedule.state_dict()))
    go(m, loss, o, schedule, 5)
    other = begun()
    for part, state in zip((other[0], other[2], other[3]), saved, strict=True):
        part.load_state_dict(state)
    go(*other, 5)
    for p, q in zip(m.parameters(), other[0].parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", list(MADE))
def test_a_model_of_few_digits_moves_as_one_of_many(name):
    """Steps far below the rounding of bfloat16 add up."""
    small, o = train(by_hooks, MADE[name], steps=12, dtype=torch.bfloat16, lr=0.02)
    large = network(torch.bfloat16).float()
    loss = nn.CrossEntropyLoss()
    other = MADE[name](large, loss, lr=0.02)
    for _ in range(12):
        X, y = data(dtype=torch.bfloat16)
        other.step((X.float(), y))
    for p, q in zip(small.parameters(), large.parameters(), strict=True):
        assert p.dtype == torch.bfloat16
        assert o.state[p]["master"].dtype == torch.float32
        torch.testing.assert_close(o.state[p]["master"], q.detach(), rtol=0.02, atol=0.01)
    with torch.no_grad():
        next(small.parameters()).zero_()  # by somebody else
    before = [p.detach().clone() for p in small.parameters()]
    o.step(data(dtype=torch.bfloat16))
    assert float((next(small.parameters()).detach() - before[0]).abs().max()) < 0.5


def test_groups_have_rates_damping_and_decay_of_their_own():
    m, loss = network(), nn.CrossEntropyLoss()
    before = copy.deepcopy(m)
    groups = [{"params": [m[0].weight], "lr": 0.0}, {"params": m[2].parameters(), "damping": 5.0, "weight_decay": 0.5}]
    o = GaussNewton(m, loss, groups, damping=1.0)
    by_hooks(m, o, loss, *data())
    assert torch.equal(m[0].bias, before[0].bias)  # in no group
    assert torch.equal(m[0].weight, before[0].weight)  # rate zero
    assert not torch.equal(m[2].weight, before[2].weight)
    ratio = o.param_groups[1]["damping"] / o.param_groups[0]["damping"]
    assert ratio == pytest.approx(5.0)
    plain = network()
    o = GaussNewton(plain, loss, [{"params": [plain[0].weight], "lr": 0.0},
                                  {"params": plain[2].parameters(), "damping": 5.0}])  # fmt: skip
    by_hooks(plain, o, loss, *data())
    torch.testing.assert_close(m[2].weight, 0.5 * plain[2].weight)


def test_clipped_gradients_are_the_right_hand_side():
    X, y = data()
    moved = []
    for share in (1.0, 0.01):
        m, loss = network(), nn.CrossEntropyLoss()
        o = GaussNewton(m, loss, damping=100.0, adapt=False, warm=0.0)
        before = m[0].weight.detach().clone()
        o.zero_grad()
        loss(m(X), y).backward()
        norm = float(nn.utils.clip_grad_norm_(m.parameters(), 1e9))
        nn.utils.clip_grad_norm_(m.parameters(), share * norm)
        o.step()
        moved.append(m[0].weight.detach() - before)
    torch.testing.assert_close(moved[1], 0.01 * moved[0], rtol=1e-4, atol=1e-12)


def test_a_gradient_that_is_not_finite_changes_nothing():
    X, y = data()
    m, o = train(by_hooks, MADE["gauss-newton"])
    before = [p.detach().clone() for p in m.parameters()]
    by_recording(m, o, None, X * float("nan"), y)
    assert all(torch.equal(p, q) for p, q in zip(m.parameters(), before, strict=True))
    by_recording(m, o, None, X, y)
    assert not torch.equal(m[0].weight, before[0])


def test_batch_statistics_are_used_and_running_ones_move_once():
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    twin, (X, y), loss = copy.deepcopy(m), data(), nn.CrossEntropyLoss()
    o = GaussNewton(m, loss)
    by_hooks(m, o, loss, X, y)
    twin(X)
    assert torch.equal(m[1].running_mean, twin[1].running_mean)
    assert int(m[1].num_batches_tracked) == 1


@pytest.mark.parametrize("outer", [True, False])
def test_a_compiled_model_is_heard(outer):
    torch.compiler.reset()  # what was compiled without the hook does not look for it
    m, loss = network(), nn.CrossEntropyLoss()
    compiled = torch.compile(m, backend="eager")
    o = GaussNewton(compiled if outer else m, loss, damping=0.1, solver="cg")
    for _ in range(3):
        by_hooks(compiled, o, loss, *data())
    expected, _ = train(by_batch, MADE["gauss-newton"])
    for p, q in zip(m.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)


def test_dropout_needs_a_seed_and_takes_it():
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    loss = nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match="dropout_seed"):
        by_hooks(m, GaussNewton(m, loss), loss, *data())
    o = GaussNewton(m, loss, dropout_seed=3)
    values = []
    for _ in range(10):
        by_hooks(m, o, loss, *data())
        values.append(float(loss(m.eval()(data()[0]), data()[1]).detach()))
        m.train()
    assert values[-1] < values[0]


def test_what_cannot_be_known_is_asked_for():
    m, loss = network(), nn.CrossEntropyLoss()
    o = GaussNewton(m, loss)
    X, y = data()
    with pytest.raises(ValueError, match=r"GaussNewton.step: a batch must be recorded by a backward pass, got none"):
        o.step()
    nn.functional.cross_entropy(m(X), y).backward()
    with pytest.raises(ValueError, match=r"got a pass whose targets were not seen; write step\(batch\)"):
        o.step()
    o.remove_hooks()
    o.zero_grad()
    loss(m(X), y).backward()
    with pytest.raises(ValueError, match=r"a batch must be recorded"):
        o.step()
    with pytest.raises(ValueError, match="params must be trainable parameters of the model, got another tensor"):
        GaussNewton(m, loss, [nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match="GaussNewton: the model must have a parameter that requires a gradient"):
        GaussNewton(network().requires_grad_(False), loss)
    with pytest.raises(TypeError, match=r"GaussNewton: model must be a torch.nn.Module, got list"):
        GaussNewton(list(m.parameters()), loss)
    for options, sentence in (
        ({"lr": -1.0}, "lr must be a number >= 0, got -1.0"),
        ({"damping": 0.0}, "damping must be a number > 0, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be a number >= 0"),
    ):
        with pytest.raises(ValueError, match=f"GaussNewton: {sentence}"):
            GaussNewton(m, loss, **options)


def test_a_gradient_scaler_is_refused():
    m, loss = network().float(), nn.CrossEntropyLoss()
    X, y = data(dtype=torch.float32)
    o = GaussNewton(m, loss)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss(m(X), y)).backward()
    with pytest.raises(ValueError, match=r"gradients must not be scaled by a GradScaler.*train in bfloat16"):
        scaler.step(o)


def test_autocast_to_bfloat16_is_served():
    m, loss = network(torch.float32), nn.CrossEntropyLoss()
    X, y = data(dtype=torch.float32)
    o = GaussNewton(m, loss)
    values = []
    for _ in range(15):
        o.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(m(X), y)
        value.backward()
        o.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.8 * values[0]


@pytest.mark.slow
@pytest.mark.parametrize("made", ["gauss-newton"])
def test_a_trainer_of_transformers_resumes_to_the_last_bit(made, tmp_path):
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
        rows_of = [{"input_ids": row, "labels": row} for row in rows]
        optimizer = GaussNewton(model, cross_entropy(), split=causal_lm)
        trainer = transformers.Trainer(model, arguments, train_dataset=rows_of, optimizers=(optimizer, None))
        trainer.train(resume_from_checkpoint=resume)
        assert optimizer.info.after < optimizer.info.loss
        return [p.detach().clone() for p in model.parameters()]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the trainer itself
        whole, resumed = trained(None), trained(str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))


def test_lightning_trains():
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.loss, self.seen = network(torch.float32), nn.CrossEntropyLoss(), []

        def training_step(self, batch, _):
            value = self.loss(self.net(batch[0]), batch[1])
            self.seen.append(float(value.detach()))
            return value

        def configure_optimizers(self):
            return GaussNewton(self.net, self.loss, damping=0.1)

    module = Module()
    X, _ = data(dtype=torch.float32)
    y = X[:, :3].argmax(1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), batch_size=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the trainer itself
        trainer = lightning.Trainer(
            max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader)
    assert len(module.seen) == 8
    assert module.seen[-1] < module.seen[0]


def test_two_processes_take_the_steps_of_one(tmp_path):
    alone = train_worker.trained("GaussNewton", False, slice(None))
    for result in on_ranks("train_worker", tmp_path):
        for p, q in zip(result["GaussNewton"], alone, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)  # systems are solved to 1e-8
