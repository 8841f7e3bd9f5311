import pytest

from frechet.report._names import common_prefix, shortened


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["vit.layers.0.q", "vit.layers.1.q"], "vit.layers."),
        (["vit.layers.0.q", "classifier"], ""),
        (["a.0.weight", "a.0.bias"], "a."),  # a number is never dropped
        (["0", "2"], ""),
        (["only.one"], ""),
        (["(root)", "a.b"], ""),
        ([], ""),
    ],
)
def test_what_all_have_in_common_is_found(names, prefix):
    assert common_prefix(names) == prefix


def test_long_names_keep_their_numbers_and_stay_different():
    long = "base_model.model.transformer.h.{}.attn.c_attn.lora_A.default"
    names = [long.format(i) for i in range(12)] + ["base_model.model.transformer.wte", "base_model.model.lm_head"]
    found = shortened(names)
    assert len(set(found)) == len(names)
    for i in range(12):
        assert f".{i}." in found[i] or f"…{i}…" in found[i] or f"{i}" in found[i].split("…")[1]
    assert found[-1] == "lm_head"
    assert max(map(len, found)) <= 34


def test_names_that_would_become_alike_stay_whole():
    a, b = "layers.0.self_attention.query.projection.weight", "layers.0.cross_attention.query.projection.weight"
    assert len(set(shortened([a, b]))) == 2


def test_what_does_not_print_is_replaced():
    assert shortened(["a\x1b[31m.b", "c"]) == ["a?[31m.b", "c"]
