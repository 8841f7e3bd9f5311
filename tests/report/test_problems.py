import pytest
import torch

from frechet.operators.derivatives._hessian import hessian
from frechet.report._problems import PROBLEMS, _sentences

EXPECTED = {"digits": (5263, 1797, 0.35), "digits-mlp": (3466, 1797, 0.35), "regression": (465, 442, 0.6)}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_built_in_problems_are_trained_on_real_data_and_usable(name):
    dim, examples, most = EXPECTED[name]
    state = torch.get_rng_state()
    objective = PROBLEMS[name]()
    assert torch.equal(torch.get_rng_state(), state)
    found = objective.check()
    assert objective.space.dim == dim
    assert found.examples == examples
    assert found.value < most  # untrained, the digits have log 10 and the regression about 1
    assert found.unreached == ()
    H = hessian(objective)
    u, v = H.domain.random(0, 0), H.domain.random(1, 0)
    assert float(u @ (H @ v)) == pytest.approx(float(v @ (H @ u)), rel=1e-3, abs=1e-3)


def test_the_text_is_english_sentences_of_various_lengths():
    sentences = _sentences(300, 64)
    assert len(sentences) == len([s for s in sentences if 20 < len(s) <= 64 and s[0].isupper() and " " in s]) == 300
    assert len({len(s) for s in sentences}) > 20


def test_training_is_repeatable():
    a, b = PROBLEMS["regression"](), PROBLEMS["regression"]()
    assert torch.equal(a.point, b.point)
