import math
from dataclasses import replace

from frechet.report import schema as s
from frechet.report import sentences
from report_sample import cost, report

SPENT = cost(1, 1, 0.1)


def pairs(largest, smallest):
    found = s.Eigenvalues(tuple(largest), tuple(smallest), SPENT, "m")
    return sentences.eigenvalues(s.Curvature("hessian", 100, found))


def test_a_sign_is_claimed_only_where_the_error_bar_allows():
    top = s.Eigenvalue(3.0, 0.1, True)
    assert "not a minimum" in pairs([top], [s.Eigenvalue(-0.5, 0.1, True)])
    assert "not distinguishable from zero" in pairs([top], [s.Eigenvalue(-0.5, 0.6, True)])
    assert "above zero" in pairs([top], [s.Eigenvalue(0.5, 0.1, True)])


def test_pairs_that_missed_their_tolerance_are_counted():
    text = pairs([s.Eigenvalue(3.0, 0.1, True), s.Eigenvalue(2.0, 1.0, False)], [])
    assert "1 of 2 did not reach the tolerance" in text


def test_one_layer_leads_another_only_where_the_intervals_part():
    section = report().layers
    a, b = section.layers[0], section.layers[1]

    def share(value, half):
        return s.Measured(value, value - half, value + half, 0.95, False, SPENT, "m")

    apart = replace(section, layers=(replace(a, share=share(0.7, 0.05)), replace(b, share=share(0.3, 0.05))))
    together = replace(section, layers=(replace(a, share=share(0.55, 0.2)), replace(b, share=share(0.45, 0.2))))
    assert ", more than " in sentences.layers(apart)
    assert ", not clearly more than " in sentences.layers(together)


def test_a_learning_rate_without_limit_says_so():
    none = s.Measured(math.inf, math.inf, math.inf, 1.0, False, SPENT, "m")
    section = replace(report().learning_rate, gradient_descent=none)
    assert "sets no limit" in sentences.learning_rate(section)
    assert "unstable above" in sentences.learning_rate(report().learning_rate)


def test_a_noise_scale_without_upper_end_is_not_given_one():
    r = report().noise
    open_end = s.Measured(math.inf, 40.0, math.inf, 0.95, False, SPENT, "m", "examples")
    text = sentences.noise(replace(r, noise_scale=open_end))
    assert "zero" in text
    assert "40" in text
    assert "More examples would tell" in text


def test_a_noise_scale_of_examples_trained_on_asks_for_others():
    r = report().noise
    nothing = s.Measured(math.inf, 0.0, math.inf, 0.95, False, SPENT, "m", "examples")
    negative = s.Measured(-0.02, -0.03, -0.01, 0.95, False, SPENT, "m")
    text = sentences.noise(replace(r, noise_scale=nothing, gradient_norm_squared=negative))
    assert "smaller than chance alone would leave it" in text
    assert "that the model has not seen" in text
    assert "e+" not in text
