import math
from dataclasses import replace

import pytest

from frechet.report import _schema as s
from frechet.report import _sentences as sentences
from report_sample import cost, empty, report

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


def test_a_point_is_called_what_its_eigenvalues_say():
    r = report()

    def first(smallest, largest=(9.71,)):
        def pair(x):
            return s.Eigenvalue(x, 1e-3, True)

        found = replace(r.hessian.eigenvalues, largest=tuple(map(pair, largest)), smallest=tuple(map(pair, smallest)))
        return sentences.meaning(replace(r, hessian=replace(r.hessian, eigenvalues=found)))[0]

    assert "a saddle and not a minimum" in first((-3.0,))
    assert "nearly a minimum" in first((-0.05,))
    assert first((0.5,)).startswith("All curvature that was found is upward")
    assert first((0.0,)).startswith("No downward curvature was found")


def test_the_first_paragraph_names_layers_rates_and_batches():
    said = " ".join(sentences.meaning(report()))
    assert "7.bias" not in said
    assert "blocks.7.attention.projection.query.weight and 3.weight hold about 81 % of the curvature" in said
    assert "Gradient descent is stable here up to a learning rate of 0.206" in said
    assert "Larger batches pay up to about 118 [92, 161] examples" in said
    assert sentences.meaning(empty()) == []
    section = report().layers
    share = section.layers[4].share
    small = replace(section.layers[0], share=replace(share, value=0.01, lower=0.0, upper=0.02))
    named = replace(section, layers=(replace(section.layers[4], name="7", share=replace(share, value=0.6)), small))
    said = " ".join(sentences.meaning(replace(report(), layers=named)))
    assert "Layer 7 holds about 60 % of the curvature" in said


def test_a_number_that_is_not_told_is_said_with_what_it_takes():
    r = report()
    said = sentences.meaning(replace(r, hessian=replace(r.hessian, wanted=4417)))
    assert "within 15 % takes about 4\u202f500 random products: set --products or --budget" in said[-1]
    assert "as good as zero" in sentences.meaning(replace(r, hessian=replace(r.hessian, wanted=10**9)))[-1]


@pytest.mark.parametrize("zero", [0.0, 2.3e-17, -1e-18])
def test_a_slice_whose_first_points_disagree_says_so_and_not_a_rounded_zero(zero):
    line = (-0.08, -0.04, zero, 0.04, 0.08)
    cut = s.Slice("largest", 25.7, line, (2.313, 2.306, 2.307, 2.333, 2.343), (2.39, 2.33, 2.307, 2.33, 2.39))
    said = sentences.loss_slice(cut)
    assert "at a distance of 0.040 already, the nearest that was computed" in said
    assert "10\u207b" not in said
    assert "lower than here by 0.0010" in said


def test_the_first_paragraph_does_not_say_that_the_only_layer_holds_everything():
    r = report()
    one = replace(r, layers=replace(r.layers, layers=r.layers.layers[:1]))
    assert "of the curvature" in " ".join(sentences.meaning(r))
    assert "of the curvature" not in " ".join(sentences.meaning(one))


def test_layers_without_shares_are_told_by_their_traces():
    section = report().layers
    none = [replace(x, share=replace(x.share, lower=-math.inf, upper=math.inf)) for x in section.layers]
    said = sentences.layers(replace(section, layers=tuple(none)))
    assert "%" in said  # of the parameters
    assert "inf" not in said
    assert "\u221e" not in said
    assert "there are no shares of it" in said
