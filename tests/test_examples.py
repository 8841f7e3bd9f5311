"""The scripts in examples run, end in seconds, and find what their docstrings say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def same_generator_afterwards():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(threads)


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def printed(module: ModuleType, result: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """What the script prints of a result that is already there."""
    monkeypatch.setattr(module, "run", lambda: result)
    module.main()
    return capsys.readouterr().out


def test_every_script_is_tested_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert SCRIPTS
    assert [s.stem for s in SCRIPTS if f'"{s.stem}"' not in text] == []


@pytest.mark.slow
def test_a_monitor_warns_before_the_loss_bursts(monkeypatch, capsys):
    module = script("watch_a_run", monkeypatch)
    found = module.run(every=10)
    assert found.warned is not None
    assert found.burst is None or found.warned < found.burst - 20
    assert found.losses[found.warned - 1] < module.BURST * sum(found.losses[module.CALM - 20 : module.CALM]) / 20
    calm = [r["stability"].value for r in found.readings if r.step <= module.CALM]
    assert max(calm) < 0.6
    assert all(r["stability"].residual <= 0.02 for r in found.readings)
    out = printed(module, found, monkeypatch, capsys)
    assert "beyond the limit first at step" in out


def test_sharpness_rises_to_the_limit_of_the_learning_rate_and_stays(monkeypatch, capsys):
    module = script("sharpness_during_training", monkeypatch)
    rows = module.run()
    limit = 2 / module.RATE
    assert rows[0].sharpness + rows[0].residual < 0.7 * limit
    assert all(0.8 * limit < row.sharpness < 1.3 * limit for row in rows[-3:])
    assert rows[-1].loss < 0.15 * rows[0].loss
    assert all(row.residual <= 1e-2 * row.sharpness for row in rows)
    # the earlier vector is worth its keep: the last Hessians cost less than the first
    assert sum(row.products for row in rows[-5:]) < 5 * rows[0].products
    out = printed(module, rows, monkeypatch, capsys)
    assert len(out.splitlines()) == len(rows) + 3
    assert out.splitlines()[-1].split()[0] == str(module.STEPS)


def test_influence_predicts_what_retraining_shows(monkeypatch, capsys):
    module = script("solve_with_curvature", monkeypatch)
    found = module.run(3)
    assert found.gradient_norm < 1e-9
    assert found.preconditioned < found.plain / 2
    assert len(found.influences) == 3
    for row in found.influences:
        assert row.predicted * row.measured > 0
        assert 0.8 < row.measured / row.predicted < 1.4
    out = printed(module, found, monkeypatch, capsys)
    assert [line.split()[0] for line in out.splitlines()[-3:]] == [str(row.example) for row in found.influences]


def test_the_trace_of_a_layer_predicts_the_loss_around(monkeypatch, capsys):
    module = script("per_layer", monkeypatch)
    rows = module.run()
    assert [row.name for row in rows] == ["0", "3", "5"]
    for row in rows:
        assert row.lower < row.trace < row.upper
        assert 0.4 < row.measured / row.predicted < 2.5
        assert row.residual < 0.02 * row.top
    out = printed(module, rows, monkeypatch, capsys)
    assert len(out.splitlines()) == 1 + len(rows)


def test_enzyme_constants_are_the_certified_ones_and_a_product_is_undetermined(monkeypatch, capsys, tmp_path):
    module = script("enzyme_kinetics", monkeypatch)
    found = module.run()
    assert found.digits > 10
    assert found.split.rank == 4
    assert found.split.null_directions.shape == (5, 1)
    assert float(found.split.x["turnover"] * found.split.x["concentration"]) == pytest.approx(float(found.fit.x[0]))
    assert bool((found.curve[2] > 0).all())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["enzyme_kinetics.py"])
    out = printed(module, found, monkeypatch, capsys)
    assert "undetermined: " in out
    assert (tmp_path / "enzyme_kinetics.png").stat().st_size > 10_000


def test_a_layer_that_is_a_program_is_trained_for_what_it_decides(monkeypatch, capsys, tmp_path):
    module = script("constrained_layer", monkeypatch)
    found = module.run()
    assert found.violation < 1e-12
    assert found.difference < 1e-7
    assert found.solves == module.STEPS + 1
    assert found.covered["the decision"][0] > found.covered["least squares"][0]
    assert abs(found.covered["the decision"][1] - found.covered["least squares"][1]) < 0.03
    assert 0 < found.price < 0.02
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["constrained_layer.py"])
    assert "adjoint solves" in printed(module, found, monkeypatch, capsys)
    assert (tmp_path / "constrained_layer.png").stat().st_size > 10_000


def test_a_decay_for_each_weight_beats_one_for_all_on_new_images(monkeypatch, capsys, tmp_path):
    module = script("weight_decay_per_parameter", monkeypatch)
    found = module.run()
    best = min(found.grid, key=lambda row: row[1])
    assert found.grid[0] != best != found.grid[-1]
    assert found.steps[-1][0] < 0.4 * best[1]
    assert found.steps[-1][1] < 0.7 * best[2]
    assert all(error < 1e-2 * norm for _, norm, error in found.errors)
    assert found.accuracy[1] > found.accuracy[0] + 0.01
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["weight_decay_per_parameter.py"])
    assert "test accuracy" in printed(module, found, monkeypatch, capsys)
    assert (tmp_path / "weight_decay_per_parameter.png").stat().st_size > 10_000


def test_a_digit_moves_into_another(monkeypatch, capsys, tmp_path):
    module = script("transport_digits", monkeypatch)
    found = module.run()
    s = found.solution
    assert s.marginal_error < 1e-12
    assert 0 <= s.gap < 1e-12
    lower, upper = s.unregularized_bounds()
    assert 0 < lower < s.value <= upper + 1e-12 < 1.5 * lower
    # the way begins and ends at the images, and loses no mass
    assert torch.allclose(found.along[0], found.across[0], atol=1e-8)
    assert torch.allclose(found.along[-1], found.across[-1], atol=1e-8)
    assert all(float(pixels.sum()) == pytest.approx(1, abs=1e-7) for pixels in found.along)
    # on the way the stroke opens into a ring, which the mean of the images fills
    inside = (slice(10, 18), slice(13, 15))
    assert float(found.along[3][inside].sum()) < 0.5 * float(found.across[3][inside].sum())
    assert {state.kind for state in found.states} == {"start", "sweeps", "newton"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["transport_digits.py"])
    out = printed(module, found, monkeypatch, capsys)
    assert "without entropy" in out
    assert (tmp_path / "transport_digits.png").stat().st_size > 10_000


def test_an_image_is_found_exactly_from_intensities_of_which_a_seventh_are_garbage(monkeypatch, capsys, tmp_path):
    module = script("phase_retrieval", monkeypatch)
    found = module.run()
    assert found.outliers > 60
    assert found.errors[0] > 0.1
    assert found.errors[-1] < 1e-14
    assert module.distance(found.squares, found.image) > 0.1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["phase_retrieval.py"])
    assert "converged: " in printed(module, found, monkeypatch, capsys)
    assert (tmp_path / "phase_retrieval.png").stat().st_size > 10_000


def test_a_robot_arm_follows_its_path_within_limits_and_says_what_it_cannot_reach(monkeypatch, capsys, tmp_path):
    module = script("robot_arm", monkeypatch)
    # all angles zero: upright, as high as the links are long
    assert module.frames(0 * module.START)[-1][:3, 3].tolist() == pytest.approx([0, 0, 0.36 + 0.42 + 0.4 + 0.126])
    found = module.run()
    for s, target in zip(found.poses, found.targets, strict=True):
        assert s.converged
        assert torch.allclose(module.frames(s.x)[-1][:3, 3], target, atol=1e-12)
        assert torch.allclose(module.frames(s.x)[-1][:3, :3], module.DOWN, atol=1e-12)
    # one motion of the elbow is free wherever no limit holds
    assert all(s.null_directions.shape[1] == 1 for s in found.poses if bool((s.active == 0).all()))
    assert all(bool((s.x.abs() <= module.LIMITS).all()) for s in [*found.poses, *found.near, found.far])
    missed = [s for s in found.near if s.residual > 1e-9]
    assert missed
    assert all(s.converged and s.active[3] == -1 for s in missed)
    assert found.far.converged
    assert found.far.residual > 0.1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["robot_arm.py"])
    assert "a point out of reach" in printed(module, found, monkeypatch, capsys)
    assert (tmp_path / "robot_arm.png").stat().st_size > 10_000


def test_bundle_adjustment_finds_cameras_and_points_in_a_file_of_its_format(tmp_path, monkeypatch, capsys):
    module = script("bundle_adjustment", monkeypatch)
    problem = module.cloud()
    module.write(problem, tmp_path / "problem.txt")
    again = module.read(tmp_path / "problem.txt")
    assert all(torch.equal(getattr(again, name), value) for name, value in vars(problem).items())
    packed = tmp_path / "problem.txt.bz2"
    packed.write_bytes(module.bz2.compress((tmp_path / "problem.txt").read_bytes()))
    found = module.run(packed)
    assert found.solution.converged, found.solution.message
    assert found.before > 5
    assert found.after < 0.7  # observations have noise of half a pixel
    assert "after elimination of 'points'" in found.solution.method
    monkeypatch.setattr(sys, "argv", ["bundle_adjustment.py"])
    out = printed(module, found, monkeypatch, capsys)
    assert "8 cameras, 150 points" in out
    (tmp_path / "short.txt").write_text("1 1 1\n0 0 1.0 2.0\n")
    with pytest.raises(ValueError, match=r"expected 16 numbers, got 4"):
        module.read(tmp_path / "short.txt")


def test_rotations_of_bundle_adjustment_are_rotations(monkeypatch):
    module = script("bundle_adjustment", monkeypatch)
    vectors = torch.tensor([[0.0, 0.0, 0.0], [0.3, -0.2, 0.9], [0.0, 3.0, 0.0]], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    cross = torch.stack([torch.linalg.cross(vectors, e.expand(3, 3)) for e in torch.eye(3, dtype=torch.float64)], 2)
    points = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    assert torch.allclose(module.rotated(vectors, points.expand(3, 3)), torch.linalg.matrix_exp(cross) @ points[0])
    J = torch.autograd.functional.jacobian(lambda w: module.rotated(w[None], points)[0], zero)
    assert torch.allclose(J, torch.stack([torch.linalg.cross(e, points[0]) for e in torch.eye(3).double()], 1))


def test_a_generator_gets_better_by_the_distance_that_it_is_trained_on_and_by_another(monkeypatch, capsys, tmp_path):
    module = script("digits_generator", monkeypatch)
    found = module.run()
    assert found.after[0] < 0.5 * found.before[0]
    assert found.after[1] < 0.8 * found.before[1]
    monkeypatch.setattr(sys, "argv", ["digits_generator.py", str(tmp_path / "picture.png")])
    out = printed(module, found, monkeypatch, capsys)
    assert out.splitlines()[0].startswith("Fréchet distance to unseen digits")
    assert (tmp_path / "picture.png").exists()


def test_a_hole_appears_where_the_topological_derivative_says(monkeypatch, capsys):
    module = script("topological_derivative", monkeypatch)
    found = module.run()
    assert found.holes == (1, 0)
    assert found.with_holes[-1] < 1e-3 * found.without[-1]
    gaps = [abs(change - T) for _, change, T in found.checks]
    assert gaps[2] < 0.6 * gaps[1] < 0.6 * gaps[0]
    assert "with nucleation" in printed(module, found, monkeypatch, capsys)


def test_vertices_of_an_iso_surface_carry_the_derivative_of_the_field(monkeypatch, capsys):
    module = script("iso_surface", monkeypatch)
    found = module.run()
    assert found.derivative_error < 1e-10
    assert found.parts == (1, 2)
    assert found.distances[-1] < 0.02 * found.distances[0]
    assert "parts of the inside" in printed(module, found, monkeypatch, capsys)


def test_a_network_solves_poissons_equation(monkeypatch, capsys):
    """A small network; the script's own size reaches 1e-8 in ten seconds."""
    module = script("poisson_network", monkeypatch)
    found = module.run(seconds=1e9, width=16, points=150, goal=1e-3)
    assert found.error < 1e-3
    assert found.boundary_weight > 0.01  # the first guess was a thousandth
    assert found.solution.method.startswith("adaptive-damping")
    assert "relative error" in printed(module, found, monkeypatch, capsys)


def test_a_conductivity_lies_in_its_interval(monkeypatch, capsys):
    module = script("conductivity", monkeypatch)
    found = module.run()
    assert found.solution.converged
    assert abs(found.k - module.TRUE) < 4 * found.error
    assert 0.002 < found.error < 0.005  # that of a fit of the exact solution is 0.0032
    assert "k = " in printed(module, found, monkeypatch, capsys)


def test_a_bar_melts_as_measured_and_stays_below_the_limit_of_its_temperature(monkeypatch, capsys):
    module = script("inverse_stefan", monkeypatch)
    rows = module.run(grids=(4,))
    assert all(s.converged for row in rows for s in (row.free, *row.limited))
    for row in rows:
        assert row.difference < 1e-6
        free, mild, strict = row.hottest
        assert strict < mild < free
        assert strict < module.LIMIT + 0.01
        costs = [s.value for s in (row.free, *row.limited)]
        assert costs == sorted(costs)
    assert "hottest" in printed(module, rows, monkeypatch, capsys)


def test_descent_in_the_metric_of_the_laplacian_does_not_see_the_grid(monkeypatch, capsys):
    module = script("quasilinear_descent", monkeypatch)
    rows = module.run(grids=(7, 15, 31))
    assert max(r.rate for r in rows) <= 1 / 3 + 5e-3
    assert len({r.steps for r in rows}) <= 2
    assert [r.plain for r in rows] == sorted(r.plain for r in rows)
    assert rows[-1].plain > 0.99
    assert all(r.difference < 1e-7 and r.newton < r.steps for r in rows)
    assert module.residual_of_a_function() < 1e-12
    assert "plain rate" in printed(module, rows, monkeypatch, capsys)


def test_the_best_source_is_at_its_bounds_where_power_costs_linearly(monkeypatch, capsys):
    module = script("optimal_sources", monkeypatch)
    found = module.run(n=15)
    assert found.solution.converged
    assert found.wrong == 0
    assert found.between <= 5  # of 225, on the edge of what is heated: there the derivative is zero
    assert found.smooth > 10 * (1 + found.between)
    assert 0.03 < float(found.source.mean()) < 0.3
    assert "#" in printed(module, found, monkeypatch, capsys)


def test_four_labels_are_spread_over_two_moons_and_the_energy_never_rises(monkeypatch, capsys):
    module = script("graph_phases", monkeypatch)
    rows = module.run()
    assert all(row.rises == 0 for row in rows)
    assert all(row.flow.converged and row.momentum.converged for row in rows)
    steps = [row.flow.iterations for row in rows]
    assert steps == sorted(steps, reverse=True)
    assert all(min(row.accuracies) >= row.propagated - 0.01 > 0.9 for row in rows)
    energies = [s.energies[-1] for row in rows for s in (row.flow, row.momentum)]
    assert max(energies) - min(energies) < 1e-6
    assert "label propagation" in printed(module, rows, monkeypatch, capsys)


def test_a_mesh_follows_a_ring_without_folds(monkeypatch, capsys):
    module = script("moving_mesh", monkeypatch)
    rows = module.run(n=20)
    for row in rows:
        assert float(row.mesh.jacobian.min()) > 0
        assert row.mesh.equidistribution < 1e-9
        assert row.error < 0.6 * row.uniform
    assert all(row.mesh.iterations < rows[0].mesh.iterations for row in rows[1:])  # the mesh before is a good start
    assert "Newton steps" in printed(module, rows, monkeypatch, capsys)


def test_a_reduced_model_says_before_it_runs_how_much_it_misses(monkeypatch, capsys):
    module = script("reduced_model", monkeypatch)
    found = module.run()
    exact, some, more = found.rows
    assert exact.defects[1] < 1e-6
    assert exact.error < 1e-4
    assert exact.error < some.error < more.error
    assert 0.01 < some.defects[0] < more.defects[0]
    assert abs(found.speed - 2) < 1e-4
    assert "defect" in printed(module, found, monkeypatch, capsys)


def test_convection_is_learnt_along_the_flow_and_not_across_it(monkeypatch, capsys):
    module = script("lagrangian_coordinates", monkeypatch)
    monkeypatch.setattr(module, "POINTS", 10)
    monkeypatch.setattr(module, "STEPS", 25)
    rows = module.run(speeds=(30.0,))
    assert rows[0].eulerian > 0.5
    assert rows[0].lagrangian < 0.2  # the script's own size reaches 2e-3
    assert "along the flow" in printed(module, rows, monkeypatch, capsys)


def test_gaussians_that_move_solve_helmholtz_equation(monkeypatch, capsys):
    module = script("gaussian_features", monkeypatch)
    found = module.run(waves=(1, 1), per_axis=4, points=10, steps=20)
    assert found.error < 2e-3
    assert found.error < 0.2 * found.first
    assert "weights alone" in printed(module, found, monkeypatch, capsys)


def test_the_adversary_s_density_is_the_maximum_of_its_game(monkeypatch, capsys):
    module = script("adversarial_sampling", monkeypatch)
    x = (torch.arange(module.GRID, dtype=torch.float64) + 0.5) / module.GRID
    square = torch.exp(-200 * (x - 0.3) ** 2)
    p = module.adversary(square)
    assert float(p.mean()) == pytest.approx(1)
    assert float(p.min()) == pytest.approx(0.1)
    # stationary: h r^2 p - beta int p'^2 changes to second order along directions of mean zero, for one beta
    h, v = 1 / module.GRID, torch.cos(3 * torch.pi * x)
    beta = float((square * v).sum() * h / (2 * (p.diff() * v.diff()).sum() / h))
    w = torch.cos(5 * torch.pi * x)
    assert float((square * w).sum() * h) == pytest.approx(2 * beta * float((p.diff() * w.diff()).sum() / h), rel=1e-3)
    found = module.run(draws=2, rounds=3)
    assert bool((found.adversarial[:, 0] == found.uniform[:, 0]).all())  # the same start
    assert bool((found.adversarial[:, -1] < found.adversarial[:, 0]).all())
    assert "near a peak" in printed(module, found, monkeypatch, capsys)


def test_the_numbers_of_a_compressor_lie_in_their_intervals(monkeypatch, capsys):
    module = script("levelling_amplifier", monkeypatch)
    found = module.run(samples=150)
    assert found.solution.converged
    assert bool(((found.parameters - module.TRUE).abs() < 4 * found.errors).all())
    assert found.after < 1.2 * module.NOISE < 0.1 * found.before
    z = module.outside(module.TRUE)
    assert torch.allclose(module.inside(z), module.TRUE)
    assert "threshold" in printed(module, found, monkeypatch, capsys)


def test_a_process_on_a_grid_solves_helmholtz_equation_at_high_frequency(monkeypatch, capsys):
    module = script("high_frequency", monkeypatch)
    rows = module.run(((30.0, 80), (60.0, 160)))
    assert all(r.error < 1e-4 for r in rows)
    assert all(r.iterations < 60 for r in rows)
    assert "points" in printed(module, rows, monkeypatch, capsys)


def test_first_order_rules_learn_the_digits(monkeypatch, capsys):
    module = script("first_order_rules", monkeypatch)
    errors = module.run()
    assert set(errors) == {"AdamW", *module.RULES}
    assert max(errors.values()) < 0.2
    assert "AdaMomentum" in printed(module, errors, monkeypatch, capsys)
