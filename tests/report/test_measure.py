import math

import pytest
import torch
from torch import nn

from frechet.errors import NotDifferentiable, UnusableObjective
from frechet.objective import Objective, l2, subsample
from frechet.objective.criteria import cross_entropy, custom, squared_error
from frechet.operators.derivatives._gauss_newton import gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.report import _metered as metered_module
from frechet.report import _operators as operators_module
from frechet.report import _run as run_module
from frechet.report._assemble import assemble
from frechet.report._measure import WEIGHTS, measure, reason
from frechet.report._page import render
from frechet.report._run import Run
from frechet.report._settings import Settings

ORIGIN = ("title", "source", "2026-01-01T00:00:00+00:00", "frechet report", "none")
SETTINGS = Settings(top=3, probes=10, steps=30, batch_sizes=(1, 4, 10_000))
FEW = Settings(top=2, probes=4, steps=8, batch_sizes=(1, 8), points=5)  # every section, by few products


def objective():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    X = torch.randn(60, 4, dtype=torch.float64)
    y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
    return Objective(model, cross_entropy(), [(X[:40], y[:40]), (X[40:], y[40:])], penalty=l2(1e-3))


def measured(o, settings=SETTINGS, **run):
    r = Run(o.space.device, WEIGHTS, **run)
    measure(o, settings, r)
    return assemble(o, settings, r, ORIGIN, "0"), r


@pytest.fixture(scope="module")
def case():
    o = objective()
    return o, *measured(o), hessian(o).dense(), gauss_newton(o).dense()


def within(m, truth, slack=1.0):
    middle, half = (m.lower + m.upper) / 2, (m.upper - m.lower) / 2
    return abs(truth - middle) <= slack * half + 1e-9


def test_eigenvalues_are_those_of_the_dense_matrices_within_their_residuals(case):
    _, report, _, H, G = case
    for found, dense in ((report.hessian.eigenvalues, H), (report.gauss_newton.eigenvalues, G)):
        truth = torch.linalg.eigvalsh(dense).flip(0)
        for e, t in zip(found.largest, truth.tolist(), strict=False):
            assert abs(e.value - t) <= e.residual + 1e-9
            assert e.converged
    smallest = torch.linalg.eigvalsh(H)
    for e, t in zip(report.hessian.eigenvalues.smallest, smallest.tolist(), strict=False):
        assert abs(e.value - t) <= e.residual + 1e-9


def test_sizes_hold_the_dense_values_in_their_intervals(case):
    _, report, _, H, G = case
    for c, A in ((report.hessian, H), (report.gauss_newton, G)):
        values = torch.linalg.eigvalsh(A)
        # one 95 % interval fails in one of twenty runs: half as much again in a fixed one
        assert within(c.trace, float(values.sum()), 1.5)
        assert within(c.frobenius_norm, float(values.square().sum().sqrt()), 1.5)
        assert within(c.stable_rank, float(values.square().sum() / values.abs().max() ** 2), 1.5)
        for d in c.effective_dimensions:
            assert within(d.number, float((values.abs() / (values.abs() + d.damping)).sum()), 1.5)


def test_layers_add_up_and_their_tops_are_those_of_the_blocks(case):
    _, report, _, H, G = case
    layers = report.layers.layers
    assert [x.name for x in layers] == ["0", "2"]
    assert sum(x.share.value for x in layers) == pytest.approx(1.0)
    assert all(x.share.lower >= 0 for x in layers)
    blocks = {"0": slice(0, 30), "2": slice(30, 51)}
    for x in layers:
        block = H[blocks[x.name], blocks[x.name]]
        assert within(x.trace, float(G[blocks[x.name], blocks[x.name]].trace()), 1.5)
        assert within(x.hessian_trace, float(block.trace()), 1.5)
        assert abs(x.top.value - float(torch.linalg.eigvalsh(block)[-1])) <= x.top.residual + 1e-9


def test_learning_rate_noise_and_slices_fit_the_dense_hessian(case):
    o, report, _, H, _ = case
    top = float(torch.linalg.eigvalsh(H)[-1])
    assert within(report.learning_rate.gradient_descent, 2 / top)
    assert [b.batch_size for b in report.learning_rate.sgd] == [1, 4, 60]
    whole = report.learning_rate.sgd[-1].top  # with all the data in a batch SGD is gradient descent
    assert whole.value == pytest.approx(2 / top, rel=1e-3)
    assert report.noise.examples == 60
    assert report.noise.noise_scale.value > 0
    cut = report.slices.slices[0]
    middle = len(cut.alpha) // 2
    assert cut.loss[middle] == pytest.approx(float(o.value()), rel=1e-6)
    assert cut.eigenvalue == pytest.approx(top, rel=1e-6)


def test_every_product_is_counted_once(case):
    _, report, run, _, _ = case
    assert report.total.products == sum(c.cost.products for c in report.costs) == run.meter.products
    assert [c.section for c in report.costs if not c.section.endswith("recording")] == list(WEIGHTS)
    assert all(c.cost.seconds > 0 and c.cost.data_passes > 0 for c in report.costs)


@pytest.mark.parametrize("products", [5, 12, 25, 40, 60, 90, 150, 400])
def test_a_budget_of_products_is_never_passed_and_is_spent_where_a_section_is_missing(products):
    report, run = measured(objective(), products=products)
    assert run.meter.products <= products
    if report.left_out:
        assert run.meter.products >= 0.9 * products
    assert report.left_out or products >= 90
    assert any(c is not None and c.trace is not None for c in (report.gauss_newton, report.hessian))
    render(report)  # whatever is missing, the page stands


def test_a_sum_of_objectives_keeps_what_applies_and_says_what_does_not():
    o = objective()
    X = torch.randn(8, 4, dtype=torch.float64)
    both = o + 0.5 * Objective(o.model, squared_error(), [(X, torch.zeros(8, 3, dtype=torch.float64))])
    report, _ = measured(both)
    assert report.hessian.trace is not None
    assert report.noise is None
    assert [entry.what for entry in report.left_out] == ["gradient noise", "learning rate"]
    render(report)


def test_a_subsample_says_what_it_stands_for():
    o = objective()
    sample = subsample(o.parts[0].data, 30, seed=1)
    report, _ = measured(Objective(o.model, cross_entropy(), sample))
    assert (report.header.data.examples, report.header.data.population) == (30, 60)
    assert any("30 of 60" in remark for remark in report.header.remarks)


def test_a_point_without_positive_curvature_has_no_largest_learning_rate():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)

    class Valley(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x) ** 2

    data = [(torch.ones(4, 1, dtype=torch.float64), torch.full((4, 1), 2.0, dtype=torch.float64))]
    report, _ = measured(Objective(Valley(), squared_error(), data))  # (w^2 - 2)^2 at 0
    assert report.learning_rate is None or math.isinf(report.learning_rate.gradient_descent.value)
    render(report)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class Squared(nn.Module):
    def forward(self, x):
        return Square.apply(x)


def test_an_operation_without_forward_mode_is_measured_in_reverse_and_said():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), Squared(), nn.Linear(3, 1)).double()
    data = [(torch.randn(20, 2, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64))]
    o = Objective(model, squared_error(), data)
    report, _ = measured(o)
    assert report.header.route == "Hessian by reverse mode, Gauss-Newton by reverse mode"
    top = float(torch.linalg.eigvalsh(gauss_newton(o, route="reverse").dense())[-1])
    assert abs(report.gauss_newton.eigenvalues.largest[0].value - top) < 1e-3 * top


class Clock:
    """Time that passes in forward passes alone."""

    def __init__(self, monkeypatch):
        self.now, self.next = 0.0, 0.0
        monkeypatch.setattr(run_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(metered_module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(operators_module, "linearize", self.unrecorded)  # it would pass no time

    def unrecorded(self, A):
        raise NotDifferentiable("not recorded")


class Timed(nn.Module):
    """A model whose first pass takes `first` seconds of a clock and each other one `others`."""

    def __init__(self, clock, first, others):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 3))
        self.clock, self.others = clock, others
        clock.next = first  # there, because a pass puts the model's own attributes back

    def forward(self, x):
        self.clock.now += self.clock.next
        self.clock.next = self.others
        return self.inner(x)


@pytest.mark.parametrize(("first", "others", "seconds"), [(6.0, 0.002, 60.0), (0.5, 0.05, 20.0), (5.0, 0.05, 30.0)])
def test_a_slow_start_does_not_empty_the_report_and_a_budget_of_time_is_spent(monkeypatch, first, others, seconds):
    clock = Clock(monkeypatch)
    torch.manual_seed(0)
    model = Timed(clock, first, others).double()
    X, y = torch.randn(30, 6, dtype=torch.float64), torch.arange(30) % 3
    o = Objective(model, cross_entropy(), [(X, y)])
    run = Run(o.space.device, WEIGHTS, seconds=seconds, began=0.0, saved=0.0)
    measure(o, Settings(), run)
    report = assemble(o, Settings(), run, ORIGIN, "0")
    assert report.hessian.eigenvalues is not None
    assert report.gauss_newton.trace is not None
    assert report.hessian.trace is not None
    if report.left_out:
        assert run.elapsed >= 0.9 * seconds
    assert run.elapsed <= 1.15 * seconds
    render(report)


def broken(kind):
    def fails(*_args, **_more):
        raise kind("It goes wrong. " + 20 * "This is what is known of it. " + "And so on")

    return fails


@pytest.mark.parametrize("kind", [RuntimeError, KeyError])
@pytest.mark.parametrize(
    ("module", "name", "lost"),
    [
        ("sections", "example_gradients", {"gradient noise"}),
        ("sections", "stability", {"learning rate"}),
        ("sections", "loss_slices", {"loss slices"}),
        ("lockstep", "tops", {"layer eigenvalues"}),
        ("lockstep", "density", {"Gauss-Newton density", "Hessian density"}),
        ("spectra", "sizes", {"Gauss-Newton traces", "Hessian traces", "learning rate"}),
        ("spectra", "eigsh", {"Gauss-Newton eigenvalues", "Hessian eigenvalues", "learning rate", "loss slices"}),
    ],
)
def test_whatever_a_stage_fails_by_costs_its_own_section_alone(monkeypatch, kind, module, name, lost):
    monkeypatch.setattr(f"frechet.report._{module}.{name}", broken(kind))
    report, run = measured(objective(), FEW)
    assert {x.what for x in report.left_out if x.what in WEIGHTS} == lost
    assert set(WEIGHTS) - set(run.results) == lost
    for entry in report.left_out:
        assert len(entry.why) < 300
        assert entry.why.endswith((".", "left out")) or "steps resolve" in entry.why
    assert "It goes wrong." in render(report)


@pytest.mark.parametrize("kind", [AssertionError, AttributeError, RecursionError, NotImplementedError, Exception])
def test_failures_of_every_kind_are_kept_in_their_section(monkeypatch, kind):
    monkeypatch.setattr("frechet.report._sections.loss_slices", broken(kind))
    report, _ = measured(objective(), FEW)
    assert [x.what for x in report.left_out] == ["loss slices"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_a_failure(monkeypatch, kind):
    monkeypatch.setattr("frechet.report._sections.stability", broken(kind))
    with pytest.raises(kind):
        measured(objective(), FEW)


def test_a_model_that_fails_in_the_check_is_one_sentence():
    class Fails(nn.Linear):
        def forward(self, x):
            raise KeyError("no such thing")

    o = Objective(Fails(3, 1), squared_error(), [(torch.ones(2, 3), torch.ones(2, 1))])
    with pytest.raises((UnusableObjective, ValueError), match="no such thing"):
        measured(o)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("short; and whole", "short; and whole"),
        ("A first sentence of some length that says what is wrong. " + "x" * 300, None),
        ("words " * 80, None),
    ],
)
def test_reasons_end_where_a_sentence_does(text, told):
    found = reason(ValueError(text))
    assert found == told if told else len(found) <= 245
    assert text.startswith(found.removesuffix(" ..."))


def test_products_are_recorded_where_many_are_planned_and_plain_where_few(monkeypatch):
    made = []
    real = operators_module.linearize
    monkeypatch.setattr(operators_module, "linearize", lambda A: made.append(type(A).__name__) or real(A))
    measured(objective())
    assert made == ["OutputProduct", "ObjectiveHessian"]  # each once
    made.clear()
    measured(objective(), products=12)
    assert made == []


def test_a_recording_that_fails_leaves_plain_products(monkeypatch):
    monkeypatch.setattr(operators_module, "linearize", broken(RuntimeError))
    report, _ = measured(objective())
    assert report.left_out == ()


class Body(nn.Module):
    """A frozen body that counts its passes, and a head."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.passes = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 3), 0

    def forward(self, x):
        self.passes += 1
        return self.head(self.body(x).tanh())


def test_a_frozen_body_is_not_run_again_for_every_product():
    torch.manual_seed(0)
    model = Body().double()
    X, y = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    o = Objective(model, cross_entropy(), [(X, y)])
    _, run = measured(o)
    assert run.meter.products > 300
    assert model.passes < 150


def test_a_criterion_without_a_gauss_newton_operator_costs_its_sections_alone():
    class Leaving(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.extra = nn.Linear(3, 4), nn.Linear(4, 2), None

        def forward(self, x):
            h = torch.tanh(self.a(x))
            self.extra = h.square().mean()
            return self.b(h)

    torch.manual_seed(0)
    model, x, y = Leaving().double(), torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 2
    terms = custom(lambda f, t: torch.nn.functional.cross_entropy(f, t, reduction="none") + model.extra)
    o = Objective(model, terms, [(x, y)])
    report, _ = measured(o)
    truth = torch.linalg.eigvalsh(hessian(o).dense()).flip(0)
    assert abs(report.hessian.eigenvalues.largest[0].value - float(truth[0])) <= 1e-3 * abs(float(truth[0]))
    told = {left.what: left.why for left in report.left_out}
    assert "Gauss-Newton eigenvalues" in told
    assert "left in an attribute of the model" in told["Gauss-Newton eigenvalues"]
    assert "<html" in render(report)
