import copy
import warnings

import pytest
import torch
from torch import nn

import train_worker
from frechet.train import MFAC
from ranks import on_ranks

F64 = torch.float64


def network(dtype=F64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).to(dtype)


def batches(steps, dtype=F64):
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(12, 6, generator=g, dtype=F64).to(dtype), torch.randint(0, 3, (12,), generator=g))
        for _ in range(steps)
    ]


def train(model, optimizer, data, scheduler=None):
    for X, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize(("dtype", "rtol"), [(F64, 1e-8), (torch.float32, 2e-3)])
@pytest.mark.parametrize(("damping", "momentum", "decay"), [(1e-5, 0.0, 0.0), (1e-1, 0.9, 0.1)])
def test_steps_are_those_of_the_dense_matrix_while_the_window_fills_and_slides(dtype, rtol, damping, momentum, decay):
    model, twin = network(dtype), network()
    lr = 1e-3 if damping < 1e-3 else 1e-1
    optimizer = MFAC(model.parameters(), lr=lr, damping=damping, window=4, momentum=momentum, weight_decay=decay)
    rows, velocity = [], 0.0
    for X, y in batches(9):
        twin.zero_grad()
        nn.functional.cross_entropy(twin(X), y).backward()
        with torch.no_grad():
            g = torch.cat([p.grad.reshape(-1) for p in twin.parameters()])
            rows = [*rows, g][-4:]
            G = torch.stack(rows)
            velocity = momentum * velocity + torch.linalg.solve(
                damping * torch.eye(len(g), dtype=F64) + G.T @ G / len(rows), g
            )
            x = (1 - lr * decay) * nn.utils.parameters_to_vector(twin.parameters()) - lr * velocity
            nn.utils.vector_to_parameters(x, twin.parameters())
        train(model, optimizer, [(X.to(dtype), y)])
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_run_that_resumes_goes_on_to_the_last_bit(dtype, stop, tmp_path):
    data = batches(12, dtype)

    def made():
        model = network(dtype)
        optimizer = MFAC(model.parameters(), lr=0.01, window=4, weight_decay=0.01)
        return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    model, optimizer, scheduler = made()
    train(model, optimizer, data[:stop], scheduler)
    torch.save([o.state_dict() for o in (model, optimizer, scheduler)], tmp_path / "saved.pt")
    train(model, optimizer, data[stop:], scheduler)
    others = made()
    for o, state in zip(others, torch.load(tmp_path / "saved.pt", weights_only=True), strict=True):
        o.load_state_dict(state)
    train(others[0], others[1], data[stop:], others[2])
    for p, q in zip(model.parameters(), others[0].parameters(), strict=True):
        assert torch.equal(p, q)


def test_groups_have_their_own_rates_and_share_the_matrix():
    data = batches(5)
    one, two = network(), network()
    train(one, MFAC(one.parameters(), lr=0.1), data)
    first, rest = [two[0].weight], [two[0].bias, two[2].weight]
    train(two, MFAC([{"params": first}, {"params": rest}], lr=0.1), data)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-12)
    frozen = network()
    train(frozen, MFAC([{"params": [frozen[0].weight], "lr": 0.0}, {"params": [frozen[2].weight]}], lr=0.1), data)
    assert torch.equal(frozen[0].weight, network()[0].weight)
    assert not torch.equal(frozen[2].weight, network()[2].weight)


def test_parameters_without_a_gradient_stay_and_closures_are_served():
    X, y = batches(1)[0]
    model = network()
    unused = nn.Parameter(torch.ones(3, dtype=F64))
    optimizer = MFAC([*model.parameters(), unused], lr=0.1, weight_decay=0.5)
    optimizer.step()  # no gradient at all: nothing happens
    assert not optimizer.state

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), y)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert torch.equal(unused, torch.ones(3, dtype=F64))


def test_the_bound_of_a_step_holds():
    (X, y), *_ = batches(1)
    model = network()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = MFAC(model.parameters(), lr=1.0, momentum=0.0, clip=1e-4, damping=1e-3)
    train(model, optimizer, [(X, y)])
    step = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    g = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    assert float((g @ step).square() + 1e-3 * step.square().sum()) == pytest.approx(1e-4)


def test_a_gradient_that_is_not_finite_changes_nothing():
    model, data = network(), batches(4)
    optimizer = MFAC(model.parameters(), lr=0.1, window=3)
    train(model, optimizer, data[:2])
    before, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, [(data[2][0] * float("nan"), data[2][1])])
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert torch.equal(optimizer.state_dict()["state"][0]["gradients"], state["state"][0]["gradients"])
    train(model, optimizer, data[3:])
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_gradients_that_explode_leave_a_factor():
    model = network()
    optimizer = MFAC(model.parameters(), lr=1e-3, damping=1e-8, window=4)
    for i, (X, y) in enumerate(batches(8)):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(X), y) * 1e12 ** (i % 2)).backward()
        optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_correlated_parameters_need_far_fewer_steps_than_by_adam():
    g = torch.Generator().manual_seed(0)
    mix = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=F64))[0]
    X = torch.randn(400, 8, generator=g, dtype=F64) * torch.logspace(0, -1.5, 8, dtype=F64) @ mix
    y = X @ mix.T @ torch.logspace(0, 1.5, 8, dtype=F64)[:, None]

    def run(made, most=600):
        torch.manual_seed(1)
        model, draw = nn.Linear(8, 1, bias=False).double(), torch.Generator().manual_seed(2)
        optimizer = made(model)
        for step in range(most):
            rows = torch.randint(0, 400, (20,), generator=draw)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(X[rows]), y[rows]).backward()
            optimizer.step()
            if float(nn.functional.mse_loss(model(X), y).detach()) < 1e-2:
                return step
        return most

    ours = run(lambda m: MFAC(m.parameters(), lr=0.05, damping=1e-2, window=64, momentum=0.9))
    theirs = min(run(lambda m, lr=lr: torch.optim.Adam(m.parameters(), lr=lr)) for lr in (0.01, 0.1, 1.0))
    assert ours <= theirs / 1.5, (ours, theirs)


def test_wrong_arguments_are_named():
    def made(**options):
        return MFAC(network().parameters(), **options)

    for options, sentence in (
        ({"lr": -1.0}, "MFAC: lr must be a number >= 0, got -1.0"),
        ({"damping": 0.0}, "MFAC: damping must be a number > 0, got 0.0"),
        ({"clip": 0.0}, "MFAC: clip must be a number > 0, got 0.0"),
        ({"momentum": 1.0}, r"MFAC: momentum must lie in \[0, 1\), got 1.0"),
        ({"window": 0}, "MFAC: window must be an int >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            made(**options)
    with pytest.raises(ValueError, match=r"MFAC: parameters must be real, dense and whole, got .* of torch.complex64"):
        MFAC([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    model, data = network(), batches(1)
    optimizer = MFAC([{"params": [model[0].weight], "window": 3}, {"params": [model[2].weight]}])
    with pytest.raises(ValueError, match=r"MFAC: window must be the same in all groups, got \[3, 128\]"):
        train(model, optimizer, data)
    optimizer = MFAC([model[0].weight], window=3)
    train(model, optimizer, data)
    with pytest.raises(ValueError, match=r"MFAC\.add_param_group: groups must be added before the first step"):
        optimizer.add_param_group({"params": [model[2].weight]})
    optimizer.param_groups[0]["window"] = 5
    with pytest.raises(ValueError, match="MFAC: window must be that of the steps before, 3, got 5"):
        train(model, optimizer, data)


def test_sparse_gradients_and_a_gradient_scaler_are_refused():
    embedding = nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="MFAC: gradients must be dense, got sparse ones"):
        MFAC(embedding.parameters()).step()
    model, (X, y) = network(torch.float32), batches(1, torch.float32)[0]
    optimizer, scaler = MFAC(model.parameters()), torch.amp.GradScaler("cpu")
    scaler.scale(nn.functional.cross_entropy(model(X), y)).backward()
    with pytest.raises(ValueError, match=r"MFAC: gradients must not be scaled by a GradScaler.*train in bfloat16"):
        scaler.step(optimizer)


@pytest.mark.slow
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
        optimizer = MFAC(model.parameters(), window=3)
        transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train(
            resume_from_checkpoint=resume
        )
        return [p.detach().clone() for p in model.parameters()]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the trainer itself
        whole, resumed = trained(None), trained(str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))


def test_two_processes_take_the_steps_of_one(tmp_path):
    found, alone = on_ranks("train_worker", tmp_path), train_worker.trained("MFAC", False, slice(None))
    for p, q, r in zip(*(r["MFAC"] for r in found), alone, strict=True):
        assert torch.equal(p, q)
        torch.testing.assert_close(p, r, rtol=1e-9, atol=1e-12)
