import torch

from frechet.linalg._result import Status
from frechet.optimize._smooth.gradient_regularized import first_length, gradient_regularized
from frechet.optimize._smooth.newton_loop import Models
from frechet.optimize._smooth.quadratic_model import full_model
from smooth_problems import begun, far_logistic


def test_the_far_logistic_start_takes_few_iterations_and_evaluations_by_products_alone():
    f, x0 = far_logistic()
    function, point, rules = begun(f, x0, full=0, gtol=1e-11)
    run = gradient_regularized(function, point, rules)
    assert float(function.space.norm(run.point.gradient)) <= 1e-10
    assert run.iterations <= 24
    assert function.counts.evaluations <= 50


def test_trials_at_one_point_share_a_krylov_space():
    f, x0 = far_logistic()
    function, point, rules = begun(f, x0, full=0, gtol=1e-11)
    run = gradient_regularized(function, point, rules)
    assert function.counts.evaluations > run.iterations + 1  # some trials were refused
    assert function.counts.products <= 20 * (run.iterations + 1)


def test_every_accepted_step_meets_the_condition_of_the_method():
    states = []
    f, x0 = far_logistic()
    function, point, rules = begun(f, x0, full=0, gtol=1e-6)
    run = gradient_regularized(function, point, rules, observe=lambda s: states.append(s) or False)
    ends = [(s.x, s.value, s.control) for s in states[1:]]  # gamma was doubled when the step to x was accepted
    starts = [(s.x, s.value) for s in states[:-1]]
    assert len(ends) >= run.iterations - 1 > 5
    for (x, before), (y, after, gamma) in zip(starts, ends, strict=True):
        g, g_after = (function.differentiated(function.at(z)).gradient for z in (x, y))
        shift = float(g.norm()) / (gamma / 2)
        assert before - after >= float(g_after @ g_after) / (8 * shift) * (1 - 1e-9)


def test_an_indefinite_model_is_regularized_until_it_descends():
    run = gradient_regularized(*begun(lambda x: (0.25 * x**4 - x**2).sum(), torch.tensor([0.1, -0.2]).double()))
    assert run.status is None
    torch.testing.assert_close(run.point.x.abs(), torch.full((2,), 2**0.5, dtype=torch.float64))


def test_the_first_length_is_that_of_the_step_along_the_gradient():
    function, point, _ = begun(lambda x: 2 * (x * x).sum(), torch.tensor([3.0, 4.0]).double())
    model = full_model(function.space, function.hessian(point), point.gradient, torch.ones(2).double(), kept=True)
    assert first_length(model) == 5.0
    flat, start, other = begun(lambda x: x.sum(), torch.zeros(2).double())
    assert first_length(Models(flat, other).at(start)) == 1.0


def test_no_trial_that_is_refused_is_taken():
    run = gradient_regularized(*begun(lambda x: torch.where(x < 0.3, 2 - x, x - 0.1).sum(), torch.ones(1).double()))
    assert run.status is Status.STAGNATED
    assert run.point.value <= 0.9
    unbounded = gradient_regularized(*begun(lambda x: -(x * x).sum(), torch.ones(2).double()))
    assert unbounded.status is Status.UNBOUNDED
