"""Monitors in the trainers of other libraries: the same training, readings at optimizer steps, state in checkpoints."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from frechet import Objective, cross_entropy
from frechet.analyze import Monitor, probe_batches, read_history
from frechet.interop import for_accelerate, for_lightning, for_transformers
from training_runs import same

pytestmark = pytest.mark.filterwarnings("ignore")


def weights(model):
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def values(readings):
    return [(r.step, {n: (q.value, q.upper, q.products) for n, q in r.quantities.items()}) for r in readings]


# --- transformers -----------------------------------------------------------------------------------------------------


def bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    draw = torch.Generator().manual_seed(1)
    rows = [
        {
            "input_ids": torch.randint(0, 30, (6,), generator=draw),
            "labels": torch.randint(0, 3, (), generator=draw),
        }
        for _ in range(48)
    ]
    return transformers, model, rows


def trained_by_transformers(folder, monitored, *, steps=8, accumulation=2, resume=False, optim="adamw_torch"):
    transformers, model, rows = bert()
    settings = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=accumulation, optim=optim,
        max_steps=steps, save_steps=4, report_to=[], seed=3, use_cpu=True, disable_tqdm=True, logging_steps=1000,
    )  # fmt: skip
    monitor, callbacks = None, []
    if monitored:
        loader = DataLoader(rows, batch_size=4)
        objective = Objective(model, cross_entropy(), probe_batches(loader, 3, seed=0))
        monitor = Monitor(
            objective, quantities=("sharpness", "stability", "critical_rate", "noise"), seed=0, every=2,
            folder=folder / "curvature",
        )  # fmt: skip
        callbacks = [for_transformers(monitor)]
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=rows, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4") if resume else None)
    return weights(model), torch.rand(3), monitor


def test_the_trainer_of_transformers(tmp_path):
    plain, drawn, _ = trained_by_transformers(tmp_path / "plain", False)
    watched, after, monitor = trained_by_transformers(tmp_path / "watched", True)
    assert same(plain, watched)
    assert torch.equal(drawn, after)
    assert [r.step for r in monitor.readings] == [2, 4, 6, 8]
    for reading in monitor.readings:
        assert reading.rule == "AdamW"
        assert reading["sharpness"].residual <= 0.02
        assert (reading["stability"].value > 0) is (reading.rate > 0)  # the schedule ends at 0
        assert not reading.notes or reading.rate == 0
    assert len(read_history(tmp_path / "watched" / "curvature").readings) == 4
    again, _, resumed = trained_by_transformers(tmp_path / "watched", True, resume=True)
    assert same(again, watched)
    assert [r.step for r in resumed.readings] == [2, 4, 6, 8]


# --- lightning --------------------------------------------------------------------------------------------------------


def lightning_parts():
    pl = pytest.importorskip("lightning.pytorch")

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(48, 4), torch.randint(0, 3, (48,)))
    return pl, Net(), data


def trained_by_lightning(folder, monitored, *, steps=8, checkpoint=None):
    pl, module, data = lightning_parts()
    loader = DataLoader(data, batch_size=4, shuffle=True)
    monitor, callbacks = None, []
    if monitored:
        objective = Objective(module, cross_entropy(), probe_batches(loader, 4, seed=0))
        monitor = Monitor(objective, quantities=("sharpness", "stability", "noise"), seed=0, every=2)
        callbacks = [for_lightning(monitor)]
    trainer = pl.Trainer(
        max_steps=steps, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=callbacks, default_root_dir=str(folder),
    )  # fmt: skip
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader, ckpt_path=checkpoint)
    return weights(module), torch.rand(3), monitor, trainer


def test_the_trainer_of_lightning(tmp_path):
    plain, drawn, _, _ = trained_by_lightning(tmp_path, False)
    watched, after, monitor, trainer = trained_by_lightning(tmp_path, True)
    assert same(plain, watched)
    assert torch.equal(drawn, after)
    assert [r.step for r in monitor.readings] == [2, 4, 6, 8]
    assert all(r.rule == "SGD with momentum" and r["sharpness"].limit > 0 for r in monitor.readings)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    _, _, rest, _ = trained_by_lightning(tmp_path, True, steps=10, checkpoint=tmp_path / "run.ckpt")
    assert [r.step for r in rest.readings] == [10]
    assert rest.readings[0]["sharpness"].products <= monitor.readings[0]["sharpness"].products  # it starts warm


# --- accelerate -------------------------------------------------------------------------------------------------------


def trained_by_accelerate(folder, monitored, steps=16, resume=False):
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(48, 4), torch.randint(0, 3, (48,)))
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    loader = DataLoader(data, batch_size=4, shuffle=True)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    watch = None
    if monitored:
        objective = Objective(prepared, cross_entropy(), probe_batches(loader, 3, seed=0))
        watch = for_accelerate(Monitor(objective, seed=0, every=2), accelerator)
    if resume:
        accelerator.load_state(str(folder))
    torch.manual_seed(1)
    done = 0
    while done < steps:
        for x, y in loader:
            with accelerator.accumulate(prepared):
                optimizer.zero_grad()
                accelerator.backward(nn.functional.cross_entropy(prepared(x), y))
                optimizer.step()
                if watch is not None:
                    watch.step(optimizer)
            done += 1
            if done == steps:
                break
    if monitored and not resume:
        accelerator.save_state(str(folder))
    return weights(model), torch.rand(3), watch


def test_a_loop_of_accelerate(tmp_path):
    plain, drawn, _ = trained_by_accelerate(tmp_path, False)
    watched, after, watch = trained_by_accelerate(tmp_path, True)
    assert same(plain, watched)
    assert torch.equal(drawn, after)
    assert watch.steps == 8  # of 16 batches
    assert [r.step for r in watch.monitor.readings] == [2, 4, 6, 8]
    assert all(r.rule == "AdamW" for r in watch.monitor.readings)
    _, _, rest = trained_by_accelerate(tmp_path, True, steps=4, resume=True)
    assert [r.step for r in rest.monitor.readings] == [10]


class Accelerator:
    """The two things that are asked of an accelerator."""

    sync_gradients = True

    def register_for_checkpointing(self, what):
        self.registered = what


def test_a_step_that_the_scaler_skips_is_not_counted():
    model = nn.Linear(2, 3)
    objective = Objective(model, cross_entropy(), [(torch.eye(2), torch.tensor([0, 1]))])
    accelerator = Accelerator()
    watch = for_accelerate(Monitor(objective, seed=0, every=1), accelerator)
    assert accelerator.registered is watch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step_was_skipped = True
    assert watch.step(optimizer) is None
    optimizer.step_was_skipped = False
    accelerator.sync_gradients = False
    assert watch.step(optimizer) is None
    accelerator.sync_gradients = True
    assert watch.step(optimizer).step == 1


@pytest.mark.parametrize(("make", "package"), [(for_transformers, "transformers"), (for_lightning, "lightning")])
def test_a_missing_package_is_named(make, package, monkeypatch):
    import sys

    for name in (
        "transformers",
        "lightning.pytorch",
        "lightning.pytorch.callbacks",
        "pytorch_lightning",
        "pytorch_lightning.callbacks",
    ):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"needs the package {package}"):
        make(None)
