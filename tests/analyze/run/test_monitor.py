"""A monitor leaves a run as it is, keeps within its share, goes on from its file, and never stops a run."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from frechet import Objective, cross_entropy, squared_error
from frechet.analyze import Monitor, probe_batches, read_history
from frechet.analyze._run.monitor import QUANTITIES
from training_runs import OPTIMIZERS, least_squares_model, made, probe, run, same


def watching(every=4, **settings):
    return lambda objective: Monitor(objective, quantities=QUANTITIES, seed=0, every=every, **settings)


# --- the run stays as it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "norms", "attention", "noisy"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_bit_for_bit_the_same(name, optimizer):
    alone, _ = run(name, optimizer)
    watched, monitor = run(name, optimizer, watching())
    assert same(alone, watched)
    assert [r.step for r in monitor.readings] == [4, 8, 12]
    assert all("sharpness" in r.quantities for r in monitor.readings), monitor.readings


def test_a_state_that_differs_is_seen():
    alone, _ = run("norms")
    other, _ = run("norms", before=lambda step, model, _: model.train(step != 7))
    assert not same(alone, other)


def test_a_compiled_model_and_its_wrapper_stay(monkeypatch):
    wrap = lambda m: torch.compile(m, backend="eager")  # noqa: E731
    alone, _ = run("norms", wrap=wrap)
    torch.compiler.reset()
    watched, monitor = run("norms", monitor=lambda o: watching()(o), wrap=wrap)
    torch.compiler.reset()
    assert same(alone, watched)
    assert monitor.readings[-1]["sharpness"].residual < 0.02


def test_autocast_around_the_step_changes_nothing():
    def both(monitor):
        with torch.autocast("cpu", torch.bfloat16):
            return run("plain", monitor=monitor)

    (alone, _), (watched, monitor) = both(None), both(watching())
    assert same(alone, watched)
    plain, X, y = made("plain")
    assert monitor.readings[0].notes == ()
    assert probe(plain, X, y).space.dtype is torch.float32


def test_hooks_and_gradients_of_accumulation_stay():
    model, X, y = made("plain")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(probe(model, X, y), seed=0, every=1)
    nn.functional.cross_entropy(model(X[:8]), y[:8]).backward()  # half of an accumulated gradient
    kept = [p.grad.clone() for p in model.parameters()]
    seen = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append(p))
    versions = [p._version for p in model.parameters()]
    assert monitor.step(1, optimizer) is not None
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), kept, strict=True))
    assert [p._version for p in model.parameters()] == versions
    assert seen == []


# --- what it says -----------------------------------------------------------------------------------------------------


def test_numbers_of_a_least_squares_problem():
    model, objective, H = least_squares_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=0.2)
    monitor = Monitor(objective, quantities=QUANTITIES, seed=0, every=1, rtol=1e-6, optimizer=optimizer)
    reading = monitor.step(1)
    top = float(torch.linalg.eigvalsh(H)[-1])
    assert reading["sharpness"].value == pytest.approx(top, rel=1e-6)
    assert reading["sharpness"].limit == pytest.approx(2 * 1.5 / 0.1 - 0.2)
    assert reading["stability"].value == pytest.approx((top + 0.2) / (2 * 1.5 / 0.1))
    assert reading["trace"].lower <= float(H.trace()) <= reading["trace"].upper
    g = objective.gradient()
    w = objective.point
    d = 0.1 * (g + 0.2 * w)  # the first buffer is the gradient
    exact = 0.1 * float(2 * g @ d / (d @ H @ d))
    assert reading["critical_rate"].lower <= exact <= reading["critical_rate"].upper
    assert reading.rule == "SGD with momentum"
    assert reading.rate == 0.1
    assert reading.loss == pytest.approx(float(objective.value()))
    assert reading["batch_sharpness"].lower < reading["batch_sharpness"].value < reading["batch_sharpness"].upper
    assert reading["noise"].value > 0
    assert "sharpness" in repr(reading)
    assert "±" in repr(reading)  # the residual is printed


@pytest.mark.parametrize(
    ("rate", "said"), [(0.5, ()), (0.98, ("edge",)), (1.5, ("times as long as is stable", "raises"))]
)
def test_it_warns_at_the_limit_and_beyond(rate, said):
    model, objective, H = least_squares_model()
    scaled = rate * 2 / float(torch.linalg.eigvalsh(H)[-1])
    # along the top direction alone the loss rises where the step is not stable
    with torch.no_grad():
        best = torch.linalg.lstsq(H, H @ objective.point - objective.gradient()).solution
        model.weight.copy_((best + torch.linalg.eigh(H).eigenvectors[:, -1])[None])
    reading = Monitor(objective, seed=0, every=1).step(0, torch.optim.SGD(model.parameters(), lr=scaled))
    assert len(reading.warnings) == len(said)
    assert all(part in text for part, text in zip(said, reading.warnings, strict=True))


def test_the_readings_of_a_run_at_the_edge_of_stability():
    """Gradient descent on a quartic valley: the index rises to 1 and stays there."""
    torch.manual_seed(0)
    X = torch.randn(64, 10)
    y = nn.functional.one_hot(torch.randint(0, 4, (64,)), 4).float()
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 4))
    objective = Objective(model, squared_error(), [(X, y)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.5)
    monitor = Monitor(objective, quantities=("sharpness", "stability"), seed=0, every=50, optimizer=optimizer)
    for step in range(1, 1001):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(X), y).backward()
        optimizer.step()
        monitor.step(step)
    indices = [r["stability"].value for r in monitor.readings]
    assert max(indices[-5:]) < 1.4
    assert min(indices[-5:]) > 0.8
    assert indices[0] < indices[-1]
    assert all(r["sharpness"].residual <= 0.02 for r in monitor.readings)


# --- the share of the time --------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass by counting: each step of training takes one, and each loss or product of the probe more."""

    def __init__(self, each):
        self.now, self.each = 0.0, each

    def __call__(self):
        return self.now


@pytest.mark.parametrize("each", [0.5, 16.0])
@pytest.mark.parametrize("share", [0.01, 0.05])
@pytest.mark.parametrize("quantities", [("sharpness",), QUANTITIES])
def test_the_share_is_kept(each, share, quantities, monkeypatch):
    model, X, y = made("plain")
    objective, clock = probe(model, X, y), Clock(each)
    forward = nn.Sequential.forward

    def slow(self, x):
        clock.now += each / 4  # of each probe batch: a forward pass, and what a product needs beside it
        return forward(self, x)

    monitor = Monitor(objective, quantities=quantities, share=share, seed=0, clock=clock)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    worst, step = 0.0, 0
    while len(monitor.readings) < 4 or step < 600:
        step += 1
        if step % 50 == 1:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), y).backward()
            optimizer.step()
        clock.now += 1.0
        monkeypatch.setattr(nn.Sequential, "forward", slow)
        monitor.step(step, optimizer)
        monkeypatch.setattr(nn.Sequential, "forward", forward)
        if step >= 500:
            worst = max(worst, monitor.share)
    assert worst <= 1.2 * share
    assert monitor.share > 0.3 * share


def test_steps_at_which_nothing_is_due_count():
    """A run of fast steps, in which a monitor that only looks at the clock takes more than its share."""
    model, X, y = made("plain")

    class Slow(Clock):
        def __call__(self):
            self.now += self.each
            return self.now

    clock = Slow(0.01)
    monitor = Monitor(probe(model, X, y), every=10**6, seed=0, clock=clock)
    for step in range(1, 101):
        clock.now += 1.0
        monitor.step(step)
    assert 0.009 < monitor.share < 0.03


def test_writing_counts(tmp_path):
    model, X, y = made("plain")
    clock = Clock(1.0)

    def write(name, value, step):
        clock.now += 5.0

    monitor = Monitor(probe(model, X, y), quantities=("trace",), every=10, seed=0, clock=clock, write=write)
    for step in range(1, 11):
        clock.now += 1.0
        monitor.step(step)
    assert monitor.share >= 5 / 15


def test_the_first_readings_say_that_they_are_not_finished(monkeypatch):
    model, X, y = made("attention")
    clock = Clock(1.0)
    forward = type(model).forward

    def slow(self, x):
        clock.now += 0.5
        return forward(self, x)

    monkeypatch.setattr(type(model), "forward", slow)
    monitor = Monitor(probe(model, X, y), quantities=("sharpness",), share=0.02, seed=0, clock=clock)
    for step in range(1, 5000):
        clock.now += 1.0
        monitor.step(step)
    residuals = [r["sharpness"].residual for r in monitor.readings]
    assert residuals[0] > 0.02  # two products are not enough
    assert residuals[-1] <= 0.02
    assert monitor.share <= 0.024


# --- files ------------------------------------------------------------------------------------------------------------


def trained(folder, first, last, model=None, optimizer=None, **settings):
    torch.manual_seed(0)
    made_model, X, y = made("plain")
    model = model or made_model
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    monitor = Monitor(probe(model, X, y), quantities=QUANTITIES, seed=0, every=5, folder=folder, **settings)
    for step in range(first, last + 1):
        optimizer.zero_grad()
        rows = torch.arange(8) + step % 30
        nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
        optimizer.step()
        monitor.step(step, optimizer)
    return monitor, model, optimizer


def values(readings):
    return [(r.step, {n: (q.value, q.lower, q.upper, q.products) for n, q in r.quantities.items()}) for r in readings]


def test_a_run_that_goes_on_reads_as_one_that_was_not_interrupted(tmp_path):
    whole, _, _ = trained(tmp_path / "whole", 1, 40)
    half, model, optimizer = trained(tmp_path / "half", 1, 20)
    half.save()
    rest, _, _ = trained(tmp_path / "half", 21, 40, model, optimizer)
    assert values(rest.readings) == values(whole.readings)
    assert values(read_history(tmp_path / "half").readings) == values(read_history(tmp_path / "whole").readings)


def test_state_dict_goes_through_torch_load(tmp_path):
    half, model, optimizer = trained(None, 1, 20)
    torch.save(half.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    straight, _, _ = trained(None, 1, 40)
    _, X, y = made("plain")
    rest = Monitor(probe(model, X, y), quantities=QUANTITIES, seed=0, every=5)
    rest.load_state_dict(state)
    for step in range(21, 41):
        optimizer.zero_grad()
        rows = torch.arange(8) + step % 30
        nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
        optimizer.step()
        rest.step(step, optimizer)
    assert values(rest.readings) == values(straight.readings)[4:]


def test_readings_after_the_step_from_which_a_run_goes_on_are_taken_back(tmp_path):
    monitor, model, optimizer = trained(tmp_path, 1, 30)
    assert [r.step for r in monitor.readings] == [5, 10, 15, 20, 25, 30]
    again, _, _ = trained(tmp_path, 16, 30, model, optimizer)
    assert [r.step for r in again.readings] == [5, 10, 15, 20, 25, 30]
    assert [r.step for r in read_history(tmp_path).readings] == [5, 10, 15, 20, 25, 30]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    trained(tmp_path, 1, 15)
    file = tmp_path / "readings.jsonl"
    file.write_text(file.read_text()[:-40])
    assert [r.step for r in read_history(tmp_path).readings] == [5, 10]
    trained(tmp_path, 11, 20)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()[1:]] == [5, 10, 15, 20]


def test_a_folder_of_another_run_is_refused(tmp_path):
    trained(tmp_path, 1, 5)
    _, objective, _ = least_squares_model()
    with pytest.raises(ValueError, match="must be new or of the same run, got readings of another model"):
        Monitor(objective, seed=0, folder=tmp_path)


def test_a_writer_gets_every_number_and_its_limit():
    seen = []
    model, objective, _ = least_squares_model()
    monitor = Monitor(objective, seed=0, every=1, write=lambda *args: seen.append(args))
    monitor.step(4, torch.optim.SGD(model.parameters(), lr=0.1))
    assert ("curvature/sharpness_limit", 20.0, 4) in seen
    assert {name for name, _, _ in seen} >= {"curvature/sharpness", "curvature/stability", "curvature/critical_rate"}


def test_tensorboard_gets_them_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    model, objective, _ = least_squares_model()
    monitor = Monitor(objective, seed=0, every=1, folder=tmp_path, write="tensorboard")
    monitor.step(4, torch.optim.SGD(model.parameters(), lr=0.1))
    assert monitor.problems == []
    assert list(tmp_path.glob("events.out.tfevents*"))


# --- nothing stops a run ----------------------------------------------------------------------------------------------


def only(monitor, step, optimizer=None):
    reading = monitor.step(step, optimizer)
    return reading if reading is not None else monitor.readings[-1]


def test_of_an_unknown_optimizer_it_says_what_is_not_known():
    model, objective, _ = least_squares_model()
    reading = only(Monitor(objective, seed=0, every=1), 1, torch.optim.Rprop(model.parameters(), lr=0.1))
    assert reading["sharpness"].limit is None
    assert reading.rule is None
    assert "the stability limit of Rprop is not known" in reading.notes[0]
    assert "critical_rate: needs an optimizer whose step is known" in reading.notes[-1]


def test_without_an_optimizer_and_before_the_first_step_of_adam():
    model, objective, _ = least_squares_model()
    assert "no optimizer was given" in only(Monitor(objective, seed=0, every=1), 1).notes[0]
    reading = only(Monitor(objective, seed=0, every=1), 1, torch.optim.Adam(model.parameters()))
    assert "known after its first step" in reading.notes[0]


@pytest.mark.parametrize(("sizes", "has_noise"), [((8, 3, 8), False), ((8, 8, 8), True)])
def test_batches_of_changing_shape_and_a_closure(sizes, has_noise):
    """A run whose batches have 8, 5, 3 and 40 examples, by an optimizer that takes a closure; a ragged probe."""
    model, X, y = made("plain")
    rows = torch.arange(sum(sizes)).split(sizes)
    objective = Objective(model, cross_entropy(), [(X[r], y[r]) for r in rows])
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
    monitor = Monitor(objective, quantities=QUANTITIES, every=2, seed=0, optimizer=optimizer)
    for step, n in enumerate((8, 5, 3, 40), 1):

        def closure(n=n):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(X[:n]), y[:n])
            loss.backward()
            return loss

        optimizer.step(closure)
        monitor.step(step)
    for reading in monitor.readings:
        assert {"sharpness", "batch_sharpness", "trace"} <= set(reading.quantities)
        assert ("noise" in reading.quantities) is has_noise
        assert has_noise or "noise: needs a probe of at least 3 batches of one size" in reading.notes
        assert any("the stability limit of LBFGS is not known" in note for note in reading.notes)


def test_a_skipped_step_is_told():
    model, objective, _ = least_squares_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(objective, seed=0, every=1, optimizer=optimizer)
    assert not any("a step that a scaler skips" in n for n in only(monitor, 1).notes)
    assert any("a step that a scaler skips" in n for n in only(monitor, 2).notes)


def test_frozen_epochs_change_what_is_measured_and_are_told():
    model, X, y = made("plain")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(probe(model, X, y), quantities=("sharpness", "stability"), seed=0, every=1, optimizer=optimizer)
    whole = only(monitor, 1)
    model[0].requires_grad_(False)
    part = only(monitor, 2)
    assert any("trainable parameters are others" in n for n in part.notes)
    assert part["sharpness"].value < whole["sharpness"].value
    model.requires_grad_(False)
    assert "must have a trainable parameter" in only(monitor, 3).notes[0]
    model.requires_grad_(True)
    assert only(monitor, 4)["sharpness"].value == pytest.approx(whole["sharpness"].value, rel=0.02)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_that_has_diverged_is_told(bad):
    model, objective, _ = least_squares_model()
    monitor = Monitor(objective, quantities=QUANTITIES, seed=0, every=1)
    with torch.no_grad():
        model.weight[0, 0] = bad
    reading = only(monitor, 1, torch.optim.SGD(model.parameters(), lr=0.1))
    assert reading.quantities == {}
    assert reading.notes == ("reading: the parameters hold a NaN or an infinity: the run has diverged",)


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, 1))
        self.fails = False

    def forward(self, x):
        if self.fails:
            raise RuntimeError("out of memory")
        return x @ self.w


def test_whatever_fails_costs_its_own_quantities():
    model = Broken()
    objective = Objective(model, squared_error(), [(torch.ones(2, 1), torch.zeros(2, 1))])
    monitor = Monitor(objective, seed=0, every=1)
    model.fails = True
    reading = only(monitor, 1, torch.optim.SGD(model.parameters(), lr=0.1))
    assert reading.quantities == {}
    assert any("sharpness" in n and "out of memory" in n for n in reading.notes)
    model.fails = False
    assert "sharpness" in only(monitor, 2, torch.optim.SGD(model.parameters(), lr=0.1)).quantities


def test_a_folder_that_cannot_be_written_and_a_writer_that_fails_are_problems(tmp_path):
    _, objective, _ = least_squares_model()

    def fails(*_):
        raise OSError("no space")

    monitor = Monitor(objective, seed=0, every=1, folder=tmp_path / "run", write=fails)
    (tmp_path / "run" / "readings.jsonl").unlink()
    (tmp_path / "run" / "readings.jsonl").mkdir()
    assert monitor.step(1) is not None
    assert len(monitor.problems) == 2
    assert "cannot write" in monitor.problems[0]
    assert "no space" in monitor.problems[1]


def test_one_batch_has_no_noise_scale_and_says_so():
    model, X, y = made("plain")
    objective = Objective(model, cross_entropy(), [(X[:8], y[:8])])
    reading = only(Monitor(objective, quantities=("batch_sharpness", "noise"), seed=0, every=1), 1)
    assert "noise: needs a probe of at least 3 batches" in reading.notes[-1]
    assert reading["batch_sharpness"].upper == math.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantities": ("sharp",)}, "quantities must be some of"),
        ({"quantities": "sharpness"}, "quantities must be some of"),
        ({"quantities": ()}, "quantities must be some of"),
        ({"share": 0.1, "every": 2}, "give share= or every=, got both"),
        ({"share": 0.0}, "share must lie between 0 and 1"),
        ({"every": 0}, "every must be a positive number"),
        ({"rtol": 1.0}, "rtol must lie between"),
    ],
)
def test_bad_arguments(settings, message):
    _, objective, _ = least_squares_model()
    with pytest.raises(ValueError, match=message):
        Monitor(objective, seed=0, **settings)
    with pytest.raises(TypeError, match="objective must be an Objective"):
        Monitor(3, seed=0)  # type: ignore[arg-type]


# --- probes -----------------------------------------------------------------------------------------------------------


def test_probe_batches_move_no_loader_and_no_generator():
    data = TensorDataset(torch.arange(20.0)[:, None], torch.zeros(20))

    def order(probed):
        torch.manual_seed(0)
        loader = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5))
        if probed:
            assert [len(x) for x, _ in probe_batches(loader, 3, seed=0)] == [4, 4, 4]
        return torch.cat([x for x, _ in loader]), torch.rand(1)

    assert same(order(False), order(True))
    first, again = (probe_batches(DataLoader(data, batch_size=4), 2, seed=1) for _ in range(2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
