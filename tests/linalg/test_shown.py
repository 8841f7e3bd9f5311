import dataclasses
import io
import json
import math
import pkgutil

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

import frechet.analyze
import frechet.linalg
from frechet.analyze import (
    curvature_noise_scale,
    layer_tops,
    layer_traces,
    loss_slices,
    noise_scale,
    plan,
    stable_learning_rate,
)
from frechet.linalg import arnoldi, diagonal, eigsh, golub_kahan, lanczos, spectral_density, svds, trace
from frechet.linalg._result import Estimate, Solution, Spectrum, Status
from frechet.linalg._shown import Result
from frechet.objective import Objective
from frechet.objective.criteria import squared_error
from frechet.operators._constructors import from_callable
from frechet.operators.derivatives._hessian import hessian

N = 300


def operator():
    d = torch.linspace(-1, 2, N, dtype=torch.float64)
    return from_callable(
        lambda V: d[:, None] * V, N, rmatmat=lambda U: d[:, None] * U, facts="symmetric", dtype=torch.float64
    )


def objective():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return Objective(model, squared_error(), [(torch.randn(9, 3).double(), torch.randn(9, 1).double())])


START = torch.ones(N, dtype=torch.float64)
MADE = {
    "estimate": lambda: trace(operator(), seed=0, products=30),
    "exact estimate": lambda: trace(operator(), products=N),
    "vector of estimates": lambda: diagonal(operator(), seed=0, products=10),
    "eigenpairs": lambda: eigsh(operator(), 12, seed=0),
    "no pairs": lambda: eigsh(operator(), 0, seed=0),
    "singular triplets": lambda: svds(operator(), 3, seed=0),
    "density": lambda: spectral_density(operator(), seed=0, probes=2, steps=10),
    "lanczos": lambda: lanczos(operator(), START, steps=5),
    "arnoldi": lambda: arnoldi(operator(), START, steps=5),
    "golub-kahan": lambda: golub_kahan(operator(), START, steps=5),
    "solution": lambda: Solution(START, Status.STAGNATED, 1e-3, 4, 5, (1.0, 0.1, math.nan), "cg"),
    "layer traces": lambda: layer_traces(hessian(objective()), seed=0, probes=8),
    "layer tops": lambda: layer_tops(objective(), seed=0),
    "noise scale": lambda: noise_scale(objective()),
    "curvature noise scale": lambda: curvature_noise_scale(objective(), seed=0, probes=4),
    "plan": lambda: plan(hessian(objective())),
    "slices": lambda: loss_slices(objective(), torch.ones(21, 2, dtype=torch.float64)),
    "range": lambda: stable_learning_rate(4.0, 1.0),
}


@pytest.fixture(scope="module")
def made():
    return {name: make() for name, make in MADE.items()}


def alike(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, Result):
        return type(a) is type(b) and all(alike(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b or a != a or type(a).__name__ == "Space"


@pytest.mark.parametrize("name", MADE)
def test_a_result_is_one_short_line(made, name):
    text = repr(made[name])
    assert "\n" not in text
    assert len(text) <= 230
    assert text.startswith(type(made[name]).__name__ + "(")
    assert "tensor(" not in text


@pytest.mark.parametrize("name", MADE)
def test_a_result_is_a_table_in_terminals_and_notebooks(made, name):
    console = Console(file=io.StringIO(), width=100)
    console.print(made[name])
    text = console.file.getvalue()
    page = made[name]._repr_html_()
    assert type(made[name]).__name__ in text
    assert page.startswith("<table>")
    assert page.count("<tr>") == page.count("</tr>") >= 1
    assert len(page) < 5000


@pytest.mark.parametrize("name", MADE)
def test_a_result_is_json_and_a_file_that_torch_reads_without_pickles(made, name):
    found = json.loads(json.dumps(made[name].to_dict(), allow_nan=False))
    assert set(found) == {f.name for f in dataclasses.fields(made[name])}
    for content in (made[name].to_dict(), made[name].state()):
        file = io.BytesIO()
        torch.save(content, file)
        file.seek(0)
        kept = torch.load(file, weights_only=True)
    assert alike(made[name], type(made[name]).from_state(kept))


@pytest.mark.parametrize(
    "name", [n for n in MADE if n in {"eigenpairs", "density", "solution", "slices"} or "layer" in n]
)
def test_a_result_draws_itself_into_given_axes(made, name):
    axes = Figure().subplots()
    assert made[name].plot(axes) is axes
    assert axes.has_data()
    assert axes.get_xlabel()


def test_names_are_escaped_where_they_are_shown():
    estimate = Estimate(torch.tensor(1.0), torch.tensor(0.5), 3, 3, 0, method="<b>[red]")
    assert "&lt;b&gt;[red]" in estimate._repr_html_()
    console = Console(file=io.StringIO(), width=100)
    console.print(estimate)
    assert "<b>[red]" in console.file.getvalue()


def test_large_tensors_and_numbers_that_are_not_finite_are_told_in_json():
    many = Spectrum(
        torch.tensor([math.inf, math.nan]), torch.zeros(10_001, 2), torch.zeros(2), torch.ones(2).bool(), 1, 2,
        Status.CONVERGED,
    )  # fmt: skip
    found = many.to_dict()
    assert found["values"] == ["inf", "nan"]
    assert found["vectors"] == {"shape": [10_001, 2], "dtype": "float32"}
    assert (found["status"], found["converged"]) == ("converged", [True, True])


def test_a_state_of_another_class_is_refused():
    with pytest.raises(
        ValueError, match=r"Spectrum.from_state: state must hold the fields of Spectrum; missing .*iterations"
    ):
        Spectrum.from_state(MADE["estimate"]().state())


@pytest.mark.parametrize("room", [frechet.linalg, frechet.analyze])
def test_every_public_result_shows_itself_alike(room):
    # states of runs and what belongs to single examples are data, not results
    data = ("State", "Example", "Gram", "Layer", "Factors", "Walk")
    for info in pkgutil.iter_modules(room.__path__):
        module = __import__(f"{room.__name__}.{info.name}", fromlist=["_"])
        for name in getattr(room, "__all__", ()):
            kind = getattr(module, name, None)
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not any(d in name for d in data):
                assert issubclass(kind, Result), name
